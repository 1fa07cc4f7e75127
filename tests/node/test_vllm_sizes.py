"""What is recorded of vLLM's sizes is what vLLM in the node's environment says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "src" / "raycluster" / "recipes" / "configs.json"
SIZING = ROOT / "tests" / "unit" / "plan" / "sizing"


def test_vllm_says_what_is_recorded() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "node-env"], check=True, stdout=subprocess.PIPE, text=True
    )
    python = Path(done.stdout.split("\n")[-2]) / "bin" / "python"
    program = Path(__file__).with_name("vllm_sizes.py")
    told = subprocess.run([python, program, CONFIGS], check=True, stdout=subprocess.PIPE, text=True)
    said = json.loads(told.stdout[told.stdout.index("{") :])
    recorded = json.loads((SIZING / "vllm.json").read_text())
    assert said == recorded, (
        f"{program.name} prints what tests/unit/plan/sizing/vllm.json should hold"
    )
