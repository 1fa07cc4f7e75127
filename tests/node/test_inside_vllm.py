"""Ours in front of vLLM's own server: who asks, what they may, and what their requests took."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raycluster.serve.engines import vllm
from raycluster.serve.engines.inside.key import NOBODY
from raycluster.serve.engines.inside.middleware import MODEL

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("inside_vllm.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints in the environment of a node."""
    node = subprocess.run(
        [ROOT / "scripts/node-env"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split("\n")[-2]
    folder = tmp_path_factory.mktemp("inside")
    vllm.write_inside(folder)
    env = {**os.environ, "PYTHONPATH": str(folder), MODEL: "a", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [Path(node, "bin/python"), PROGRAM], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def test_each_owner_s_tokens_are_those_that_vllm_counts(told: dict[str, Any]) -> None:
    assert told["left"] == 0
    assert told["counted"] == told["expected"]
    for kind, tokens in told["theirs"].items():
        assert sum(of[kind] for of in told["counted"].values()) == tokens > 0


def test_limits_count_what_is_counted_for_the_bill(told: dict[str, Any]) -> None:
    keys = {owner: of for owner, of in told["expected"].items() if owner != NOBODY}
    assert told["limited"] == {owner: of["prompt"] + of["generation"] for owner, of in keys.items()}
    assert told["running"] == [0, 1007, 0]


def test_a_flood_of_one_key_lets_another_pass_in_vllm_s_queue(told: dict[str, Any]) -> None:
    order = told["order"]
    assert sorted(order) == ["flood"] * 100 + ["high"] + ["light"] * 3 + ["low"]
    assert (order[0], order[-1]) == ("high", "low")
    assert [n for n, owner in enumerate(order) if owner == "light"][-1] < 12
    assert told["wishes"] == [True, False]


def test_the_engine_lets_go_of_a_request_whose_client_left_while_it_was_handed_over(
    told: dict[str, Any],
) -> None:
    assert told["aborted"] == ["r"]


def test_vllm_s_server_knows_whose_request_it_has(told: dict[str, Any]) -> None:
    answers = told["answers"]
    assert answers["plain"] == [200, {"owner": "alice"}]
    assert answers["nobody"] == [200, {"owner": "-"}]
    status, said = answers["full"]
    assert (status, said["error"]["code"]) == (429, "rate_limit_exceeded")
    status, said = answers["other"]
    assert (status, said["error"]["code"]) == (403, "model_not_found")


def test_tools_without_a_parser_are_told_what_is_missing(told: dict[str, Any]) -> None:
    status, said = told["answers"]["tools"]
    assert status == 400
    words = 'engine_args = { enable_auto_tool_choice = true, tool_call_parser = "hermes" }'
    assert words in said["error"]["message"]
    assert "--" not in said["error"]["message"]
