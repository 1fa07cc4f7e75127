"""Times the start of a model by phase: the first on a host, and a second one with what it left.

    python -m benchmarks.warm_start [--rounds 1]

A cluster of this machine alone serves a small model, compiled as vLLM does by default. The first
start finds no compile cache; then the same model is deployed again with another environment
variable, which replaces the replica. Both are read from the replica's own report. Ends with 1 when
a second start is not clearly faster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.figures import Limit, keep
from benchmarks.local import Local, made_by

MOST = 0.7
"""What a second start may take of the first; the imports are the same in both."""
ARGUMENTS = """
{ max_model_len = 256, max_num_batched_tokens = 256, max_num_seqs = 8, dtype = "bfloat16" }
""".strip()
"""A small batch: on a CPU the run that follows the compilation computes a whole one."""


def started(cluster: Local, model: str, turn: str) -> dict[str, float]:
    """Bring the model up and return the seconds of the replica's start, by phase, and of `up`."""
    began = time.monotonic()
    outcome = cluster.up(model, ARGUMENTS, turn)
    took = time.monotonic() - began
    [proof] = outcome["completions"]
    return {**proof["start_seconds"], "up": round(took, 2)}


def one_round(home: Path, model: str) -> dict[str, dict[str, float]]:
    """Return a first and a second start on an empty home folder."""
    cluster = Local("warm", home)
    try:
        return {turn: started(cluster, model, turn) for turn in ("cold", "warm")}
    finally:
        cluster.down()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    model = made_by("model")
    rows: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as home:
            rows.append(one_round(Path(home), model))
    print(f"{'seconds':<12} {'cold':>8} {'warm':>8} {'ratio':>6}")
    for phase in dict.fromkeys([*rows[0]["cold"], *rows[0]["warm"]]):
        cold, warm = (median(r[turn].get(phase, 0.0) for r in rows) for turn in ("cold", "warm"))
        print(f"{phase:<12} {cold:>8.2f} {warm:>8.2f} {warm / cold if cold else 0:>6.2f}")
    ratio = median(r["warm"]["total"] / r["cold"]["total"] for r in rows)
    keep("warm_start", rows, [Limit("second start / first", ratio, MOST)])


if __name__ == "__main__":
    main()
