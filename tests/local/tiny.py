"""A random model of 7 million weights, which starts as fast as an engine can."""

from __future__ import annotations

import subprocess
from pathlib import Path

from raycluster.serve.settings import ModelSettings
from tests.local.cluster import ROOT, made_by

NAME = "tiny"


def tiny(folder: Path) -> ModelSettings:
    """Make the model below `folder`; return the settings that serve it on vLLM."""
    target = folder / "tiny"
    python, script = f"{made_by('node-env')}/bin/python", ROOT / "scripts/save_tiny.py"
    subprocess.run([python, script, made_by("model"), target], check=True)
    args = {"max_model_len": 512, "enforce_eager": True}
    return ModelSettings(NAME, str(target), engine="vllm", engine_args=args)
