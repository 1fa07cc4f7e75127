"""Times the start of a model by phase: the first on a host, and a second one with what it left.

    python -m benchmarks.warm_start [--rounds 1]

A cluster of this machine alone (native runtime, no SSH, no GPU) serves a small model, compiled as
vLLM does by default. The first start finds no compile cache; then the same model is deployed again
with another environment variable, which replaces the replica. Both are read from the replica's own
report. Ends with 1 when a second start is not faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Limit, keep

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("raycluster")
MOST = 0.7
"""What a second start may take of the first; the imports are the same in both."""
API = 28000
SPEC = """
[cluster]
name = "warm"
app_timeout = 900

[runtime]
kind = "native"
python = "{node}/bin/python"
start_on_boot = false

[head]
transport = "local"
gpus = 0

[env]
TURN = "{turn}"

[ports]
{ports}

[[models]]
name = "model"
source = "{model}"
engine = "vllm"
engine_args = {{ max_model_len = 512, dtype = "bfloat16" }}
"""


def ports() -> str:
    """Return ports of our own, so that a cluster with the default ones may stay."""
    names = ("dashboard", "gcs", "node_manager", "object_manager", "dashboard_agent_grpc")
    names += ("dashboard_agent_http", "runtime_env_agent", "metrics", "ray_client")
    lines = [f"{name} = {API + at}" for at, name in enumerate(("api", *names))]
    return "\n".join([*lines, f"worker_min = {API + 100}", f"worker_max = {API + 999}"])


def made_by(script: str) -> str:
    """Run one of the scripts that make what is needed; its last line is a path."""
    done = subprocess.run(
        [ROOT / "scripts" / script], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2]


def run(home: Path, *args: str | Path) -> str:
    """Run the program; a failure ends the benchmark."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    command = [PROGRAM, *args]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"raycluster {args} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def started(home: Path, spec: Path) -> dict[str, float]:
    """Bring the spec up and return the seconds of the replica's start, by phase, and of `up`."""
    began = time.monotonic()
    outcome: Mapping[str, Any] = json.loads(run(home, "up", spec, "--json"))
    took = time.monotonic() - began
    [proof] = outcome["completions"]
    return {**proof["start_seconds"], "up": round(took, 2)}


def one_round(home: Path, node: str, model: str) -> dict[str, dict[str, float]]:
    """Return a first and a second start on an empty home folder."""
    spec = home / "warm.toml"
    found = {}
    try:
        for turn in ("cold", "warm"):
            text = SPEC.format(node=node, model=model, turn=turn, ports=ports())
            spec.write_text(text)
            found[turn] = started(home, spec)
    finally:
        run(home, "down", spec, "--yes")
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    node, model = made_by("node-env"), made_by("model")
    rows: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as home:
            rows.append(one_round(Path(home), node, model))
    print(f"{'seconds':<12} {'cold':>8} {'warm':>8} {'ratio':>6}")
    for phase in dict.fromkeys([*rows[0]["cold"], *rows[0]["warm"]]):
        cold, warm = (median(r[turn].get(phase, 0.0) for r in rows) for turn in ("cold", "warm"))
        print(f"{phase:<12} {cold:>8.2f} {warm:>8.2f} {warm / cold if cold else 0:>6.2f}")
    ratio = median(r["warm"]["total"] / r["cold"]["total"] for r in rows)
    keep("warm_start", rows, [Limit("second start / first", ratio, MOST)])


if __name__ == "__main__":
    main()
