"""What nvidia-smi says while something else is done."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

QUERY = "timestamp,utilization.gpu,utilization.memory,memory.used,power.draw,clocks.sm"


@contextmanager
def watched() -> Iterator[list[str]]:
    """Ask nvidia-smi once a second, where there is one; its lines are there at the end."""
    lines: list[str] = []
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,nounits", "-l", "1"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield lines
        return
    try:
        yield lines
    finally:
        process.terminate()
        lines += process.communicate()[0].splitlines()
