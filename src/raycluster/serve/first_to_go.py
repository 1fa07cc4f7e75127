"""Marks this process for the kernel, which ends one where the memory of a host is used up."""

from __future__ import annotations

import logging
from pathlib import Path

FIRST = 1000
"""Of processes with this number the kernel takes the largest, and before all with less."""

OWN = Path("/proc/self/oom_score_adj")


def go_first() -> None:
    """Have the kernel end this process, and what it starts, before Ray's and Serve's own."""
    try:
        OWN.write_text(str(FIRST))
    except OSError as error:
        logging.getLogger("ray.serve").warning("raycluster: %s: %s", OWN, error)
