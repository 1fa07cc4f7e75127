"""Times `raycluster status` in the lab: 3 hosts that serve a model, then the same cluster of 16.

    python -m benchmarks.status [--rounds 7] [--many 16] [--quick]

With 16 hosts in the spec it is timed twice: before `up`, when 13 of them have sshd and Docker and
nothing of ours, and after it. `--quick` leaves the latter out.

Needs root on Debian, as the lab does. Whole runs of the program are timed, Python's start included,
without a load and then while two requests run all the time. The CPU seconds of the program alone
are kept beside them, for the hosts share this machine. Prints medians; raw figures go to
benchmarks/results/. Ends with 1 when a wanted limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Limit, keep
from tests.lab.hosts import Lab, open_lab
from tests.lab.specs import cluster_toml

FEW = 3
DEGRADED = 3  # the exit code of a look that finds hosts without their process
STEP = 4
"""Hosts that join at once: each starts a dozen processes on this one machine."""
PROGRAM = Path(sys.executable).with_name("raycluster")


class Cluster:
    """The lab's first hosts as one cluster, and the program in a home of its own."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self._lab = lab
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
        self.spec = home / "cluster.toml"

    def name(self, count: int) -> None:
        """Write a spec of the first `count` hosts."""
        hosts = self._lab.hosts[:count]
        self.spec.write_text(cluster_toml(self._lab, hosts, name="status", tiny=True))

    def up(self, count: int) -> None:
        """Make it a cluster of `count` hosts."""
        self.name(count)
        print(f"up with {count} hosts", flush=True)
        self.run("up", self.spec)

    def run(self, *args: str | Path) -> tuple[float, float, str]:
        """Run the program; return wall and CPU seconds and its output. A failure ends all."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        done = subprocess.run(
            [PROGRAM, *args], env=self._env, stdout=subprocess.PIPE, text=True, check=False
        )
        took = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, DEGRADED):
            raise SystemExit(f"raycluster {args} ended with {done.returncode}\n{done.stdout}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return took, cpu, done.stdout

    @contextmanager
    def load(self) -> Iterator[None]:
        """Keep two requests running."""
        prompts = self.spec.with_name("prompts.txt")
        prompts.write_text("".join(f"Count to {n}.\n" for n in range(50)))
        options = ("-c", "2", "-n", "100000", "--max-tokens", "64", "--no-calibrate", "--json")
        argv = [str(a) for a in (PROGRAM, "bench", "--prompts", prompts, "--spec", self.spec)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            [*argv, *options], env=self._env, stdout=quiet, stderr=quiet
        ) as process:
            try:
                while not self._running():
                    if process.poll() is not None:
                        raise SystemExit("the load ended before it began")
                yield
            finally:
                process.terminate()

    def _running(self) -> bool:
        told: dict[str, Any] = json.loads(self.run("status", self.spec, "--json")[2])
        return bool(told["models"][0]["figures"]["running_requests"])


def measure(cluster: Cluster, what: str, rounds: int) -> list[dict[str, float | str]]:
    """Return the figures of so many runs."""
    rows: list[dict[str, float | str]] = []
    for _ in range(rounds):
        took, cpu, _out = cluster.run("status", cluster.spec)
        load = os.getloadavg()[0]
        rows.append({"what": what, "seconds": took, "cpu_seconds": cpu, "load": load})
        print(f"{what}: {took:.2f} s, {cpu:.2f} s of CPU; load {load:.1f}", flush=True)
    return rows


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        with open_lab(home / "lab", docker=options.many, native=0) as lab:
            cluster = Cluster(lab, home)
            cluster.up(FEW)
            rows += measure(cluster, f"status of {FEW} hosts", options.rounds)
            with cluster.load():
                rows += measure(cluster, f"status of {FEW} hosts, loaded", options.rounds)
            cluster.name(options.many)
            rows += measure(cluster, f"status of {options.many} hosts, {FEW} up", options.rounds)
            if not options.quick:
                for count in [*range(FEW + STEP, options.many, STEP), options.many]:
                    cluster.up(count)
                rows += measure(cluster, f"status of {options.many} hosts", options.rounds)
            cluster.run("down", cluster.spec, "--yes")

    kinds = dict.fromkeys(str(row["what"]) for row in rows)
    middle = {k: median(float(r["seconds"]) for r in rows if r["what"] == k) for k in kinds}
    few, *many = (kind for kind in kinds if "loaded" not in kind)
    keep("status", rows, [Limit(few, middle[few], 1.0), *(Limit(m, middle[m], 3.0) for m in many)])


if __name__ == "__main__":
    main()
