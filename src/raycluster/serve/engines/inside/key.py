"""Whose key a request came with, as the gateway tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar

from raycluster.serve.engines.inside.quotas import Asked, Limits, limits_of

OWNER_HEADER, MODELS_HEADER = "x-raycluster-owner", "x-raycluster-models"
LIMITS_HEADER = "x-raycluster-limits"
"""What the gateway tells of the key that a request came with: its owner, the models it is for, and
its limits.

No second one means all models. Clients of the gateway cannot set them.
"""

NOBODY = "-"
"""The owner of requests that came without a key."""

OWNER: ContextVar[str] = ContextVar("raycluster_owner", default=NOBODY)
ASKED: ContextVar[Asked | None] = ContextVar("raycluster_asked", default=None)
PRIORITY: ContextVar[int] = ContextVar("raycluster_priority", default=0)

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def asked_by(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, frozenset[str] | None]:
    """Return the owner of a request's key, and the models that the key is for; None is all."""
    owner, models = NOBODY, None
    for name, value in headers:
        if name == OWNER_HEADER.encode():
            told = value.decode("latin-1")
            owner = told if _OWNER.fullmatch(told) else NOBODY
        elif name == MODELS_HEADER.encode():
            models = frozenset(value.decode("latin-1").split(",")) | (models or frozenset())
    return owner, models


def limits_told(headers: Iterable[tuple[bytes, bytes]]) -> Limits:
    """Return the limits of the key."""
    told = (value for name, value in headers if name == LIMITS_HEADER.encode())
    return limits_of(next(told, b"").decode("latin-1"))
