"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    check: Callable[[], T | None],
    *,
    timeout: float,
    interval: float = 0.25,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T | None:
    """Return the first result of `check` that is not None, or None after `timeout` seconds."""
    end = clock() + timeout
    while (result := check()) is None:
        if clock() >= end:
            return None
        sleep(interval)
    return result
