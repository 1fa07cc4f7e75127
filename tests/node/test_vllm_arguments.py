"""Every argument of vLLM's server, and of recipes, arrives as what the spec gives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from raycluster.recipes.catalog import catalog

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
RECIPES = catalog().recipes
PARSE = Path(__file__).with_name("vllm_arguments.py")


def test_every_argument_arrives_as_it_is_given() -> None:
    node = subprocess.run(
        [ROOT / "scripts/node-env"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split("\n")[-2]
    given = {r.name: r.arguments(q) for r in RECIPES.values() for q in r.quantizations}
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [Path(node, "bin/python"), PARSE, json.dumps(given)],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == {}
    assert told["tried"] > 200
    assert {"allowed_origins", "middleware", "cudagraph_capture_sizes"} <= set(told["lists"])
    assert told["recipes"] == {}
