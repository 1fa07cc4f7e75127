"""Counts the requests that fail, or end early, during three rolling updates.

    python -m benchmarks.rollout [--requests 10000] [--clients 8]

Ray, vLLM's CPU build and a small random model on this machine; a quarter of the clients read short
streams and one reads long ones, all without pause and on connections that they keep. Meanwhile an
engine argument changes, changes back, and a second replica comes, each as `raycluster deploy` does
it. Raw figures go to benchmarks/results/: each update, each second, each request that went wrong.
Ends with 1 when one did.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from benchmarks.figures import Limit, keep
from raycluster.serve.settings import ModelSettings
from tests.local.cluster import Cluster, open_cluster
from tests.local.load import KINDS, Load
from tests.local.rolling import at_work, deploy, with_args
from tests.local.tiny import NAME, tiny

BETWEEN = 200
"""Requests before, between and after updates."""


def update(cluster: Cluster, load: Load, what: str, model: ModelSettings) -> dict[str, Any]:
    """Roll one change out under load; return its row."""
    before, began = len(load.results), time.monotonic()
    change = deploy(cluster, model)
    ended = time.monotonic()
    row = {
        "update": what,
        "began": began,
        "seconds": ended - began,
        "requests": len(load.results) - before,
        "told": list(change.costs),
    }
    print(row, flush=True)
    at_work(load, BETWEEN)
    return row


def seconds(load: Load) -> list[dict[str, Any]]:
    """Return a row for each second of the load."""
    first = min(result.began for result in load.results)
    rows: dict[int, dict[str, Any]] = {}
    for result in load.results:
        at = int(result.ended - first)
        row = rows.setdefault(at, {"second": at, "ended": 0, "wrong": 0, "longest_short_s": 0.0})
        row["ended"] += 1
        row["wrong"] += bool(result.wrong)
        if result.kind != "long stream":
            row["longest_short_s"] = max(row["longest_short_s"], result.ended - result.began)
    return [rows[at] for at in sorted(rows)]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with open_cluster() as cluster:
        model = tiny()
        deploy(cluster, model)
        whole, stream, _, long = KINDS
        short = [stream if n % 4 == 0 else whole for n in range(options.clients - 1)]
        load = Load(str(cluster.http.base_url), NAME, (*short, long))
        load.start()
        try:
            at_work(load, BETWEEN)
            other = with_args(model, max_num_seqs=32)
            rows = [
                update(cluster, load, "an engine argument", other),
                update(cluster, load, "the argument as before", model),
                update(cluster, load, "a second replica", replace(model, replicas=2)),
            ]
            at_work(load, options.requests - len(load.results), seconds=600)
        finally:
            load.stop()
    report(load, rows)


def report(load: Load, rows: list[dict[str, Any]]) -> None:
    """Print what was counted, and keep it."""
    first = min(result.began for result in load.results)
    for row in rows:
        row["began"] -= first
    truncated = sum(result.wrong.startswith("truncated") for result in load.results)
    print(dict(Counter(result.kind for result in load.results)), "requests")
    kept = [*rows, *seconds(load), *(asdict(result) for result in load.wrong)]
    keep(
        "rollout",
        kept,
        [
            Limit(f"failed of {len(load.results)}", len(load.wrong) - truncated, 0),
            Limit(f"truncated of {len(load.results)}", truncated, 0),
        ],
    )


if __name__ == "__main__":
    main()
