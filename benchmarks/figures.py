"""Prints figures against their limits and keeps the raw ones."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Limit:
    """A figure, and what it may be at most."""

    what: str
    figure: float
    at_most: float

    @property
    def kept(self) -> bool:
        """True when the figure is within its limit."""
        return self.figure <= self.at_most


def cpu() -> str:
    """Return the CPU's name and which instructions for bfloat16 it has, which vLLM goes by."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    flags = (flag for flag in found.get("flags", "").split() if "bf16" in flag)
    return " ".join([found.get("model name", "unknown").strip(), *flags])


def keep(name: str, rows: Sequence[Mapping[str, object]], limits: Sequence[Limit]) -> None:
    """Print the limits, write everything to a file, and end with 1 when one was missed."""
    for limit in limits:
        word = "" if limit.kept else "   MISSED"
        print(f"{limit.what:<45} {limit.figure:8.2f}   at most {limit.at_most:g}{word}")
    now = datetime.now(UTC)
    machine = {
        "cpus": os.cpu_count(),
        "cpu": cpu(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }
    result = {
        "started": now.isoformat(timespec="seconds"),
        "options": sys.argv[1:],
        "machine": machine,
        "limits": [{**asdict(limit), "kept": limit.kept} for limit in limits],
        "rows": rows,
    }
    path = FOLDER / f"{name}-{now:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"raw figures: {path}")
    if not all(limit.kept for limit in limits):
        sys.exit(1)
