"""Every argument of vLLM's server, given as the spec gives it, arrives as what was given."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
PARSE = Path(__file__).with_name("vllm_arguments.py")


def test_every_argument_arrives_as_it_is_given() -> None:
    node = subprocess.run(
        [ROOT / "scripts/node-env"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split("\n")[-2]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [Path(node, "bin/python"), PARSE], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == {}
    assert told["tried"] > 200
    assert {"allowed_origins", "middleware", "cudagraph_capture_sizes"} <= set(told["lists"])
