"""Waiting for a condition, and which errors waiting does not cure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from raycluster.core.errors import (
    AuthError,
    ForwardRefusedError,
    HostKeyError,
    ImageError,
    LockedError,
    NotRunError,
    PortInUseError,
)

T = TypeVar("T")

LASTING = (
    *(AuthError, ForwardRefusedError, HostKeyError, ImageError, LockedError),
    *(NotRunError, PortInUseError),
)


def wait_for(
    check: Callable[[], T | None],
    *,
    timeout: float,
    interval: float = 0.25,
) -> T | None:
    """Return the first result of `check` that is not None, or None after `timeout` seconds."""
    end = time.monotonic() + timeout
    while (result := check()) is None:
        if time.monotonic() >= end:
            return None
        time.sleep(interval)
    return result


def raise_lasting(error: BaseException | None) -> None:
    """Raise the error, or one that led to it, where it stays however long is waited."""
    while error is not None:
        if isinstance(error, LASTING):
            raise error
        error = error.__cause__ or error.__context__  # httpcore raises its own from None
