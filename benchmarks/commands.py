"""Times the commands of every day in the lab: help, status, and `up` with nothing to change.

    python -m benchmarks.commands [--rounds 5] [--many 16]

Needs root on Debian, as the lab does. First 3 hosts are alone on this machine. Then two clusters
run at once, of 3 hosts and of `--many`, and take turns: for the ratio, for the machine is full
then. Prints medians. Raw figures go to benchmarks/results/. Ends with 1 when a wanted limit is
missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.figures import Limit, keep
from tests.lab.hosts import Host, Lab, open_lab
from tests.lab.specs import cluster_toml

STEP = 4
"""Hosts that join at once: each starts a dozen processes on this one machine."""
PROGRAM = Path(sys.executable).with_name("raycluster")


def run(home: Path, *args: str | Path) -> tuple[float, float]:
    """Run the program; return wall seconds and peak memory in MB. A failure ends the benchmark."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    start = time.monotonic()
    process = subprocess.Popen([PROGRAM, *args], env=env, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate()
    took = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"raycluster {args} ended with {process.returncode}\n{out}")
    return took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def spec(lab: Lab, folder: Path, name: str, hosts: list[Host], *, model: bool) -> Path:
    """Write and return the spec of a cluster."""
    path = folder / f"{name}.toml"
    path.write_text(cluster_toml(lab, hosts, name=name, model=model))
    return path


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=16)
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        for _ in range(options.rounds + 1):
            took, peak = run(home, "--help")
            rows.append({"what": "help", "seconds": took, "peak_mb": peak})
        with open_lab(home / "lab", docker=3 + options.many, native=0) as lab:
            few = spec(lab, home, "few", lab.hosts[:3], model=True)
            many = spec(lab, home, "many", lab.hosts[3:], model=False)
            run(home, "up", few)
            for _ in range(options.rounds):
                for what in ("status", "up"):
                    rows.append({"what": f"{what} 3, alone", "seconds": run(home, what, few)[0]})
            for count in range(STEP, options.many + STEP, STEP):
                run(home, "up", spec(lab, home, "many", lab.hosts[3 : 3 + count], model=False))
            for turn in range(options.rounds):
                jobs = [
                    *(("status 3", "status", few), ("status many", "status", many)),
                    *(("up 3", "up", few), ("up many", "up", many)),
                ]
                for what, command, path in jobs if turn % 2 else reversed(jobs):
                    rows.append({"what": what, "seconds": run(home, command, path)[0]})
            for path in (few, many):
                run(home, "down", path, "--yes")
    report(rows, options.many)


def report(rows: list[dict[str, float | str]], many: int) -> None:
    """Print the medians and check the limits."""

    def middle(what: str, key: str = "seconds") -> float:
        return median(float(r[key]) for r in rows if r["what"] == what)

    limits = [
        Limit("help, s", middle("help"), 0.2),
        Limit("help, MB", middle("help", "peak_mb"), 60),
        Limit("status of 3 hosts, s", middle("status 3, alone"), 1.0),
        Limit(f"status of {many} hosts, s", middle("status many"), 3.0),
        Limit("up without changes, 3 hosts, s", middle("up 3, alone"), 2.0),
        Limit(f"up without changes, {many} hosts / 3", middle("up many") / middle("up 3"), 2.0),
    ]
    keep("commands", rows, limits)


if __name__ == "__main__":
    main()
