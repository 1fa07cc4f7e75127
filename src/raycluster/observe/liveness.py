"""Whether a process of ours lives on its host, and why it does not: told by its own log."""

from __future__ import annotations

import time
from collections.abc import Callable

from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.last_words import last_words
from raycluster.core.untrusted import end_of
from raycluster.hosts.fleet import Connected
from raycluster.serve.rootcause import last_exception
from raycluster.services.ray_node import RAY_ROLES

EARLY_S = 20.0
"""A node that ends within so many seconds will not do better; later ones are started again."""
WORDS = 256 * 1024
"""Bytes of a process's last lines in which the cause of its end is looked for."""


def raise_if_dead(connected: Connected, role: str) -> None:
    """Raise where the process ended instead of starting: waiting longer would not help."""
    found = next((f for f in connected.runtime.observe() if f.role == role), None)
    if found is None or found.health != "running":
        raise no_start(connected, role, f"the {role} does not stay up")


def watched(connected: Connected, role: str, patience: float = EARLY_S) -> Callable[[], None]:
    """Return what raises HostError once the process has been away for `patience` seconds.

    Whatever starts it again has had its time by then.
    """
    since: float | None = None

    def look() -> None:
        nonlocal since
        try:
            raise_if_dead(connected, role)
        except HostError:
            since = since or time.monotonic()
            if time.monotonic() - since > patience:
                raise
        else:
            since = None

    return look


def no_start(connected: Connected, role: str, what: str) -> HostError:
    """Return the error for a process that does not start, with what its log tells of it."""
    try:
        lines = end_of(connected.runtime.logs(role, follow=False, tail=60, since=None), WORDS)
        said = lines.decode("utf-8", "replace")
        cause = last_exception(said) or last_words(said)
    except RayclusterError as error:
        cause = str(error)
    return HostError(
        f"{what}: {cause}" if cause else what,
        where=connected.host.name,
        hint=f"raycluster logs {connected.host.name}{'' if role in RAY_ROLES else f'/{role}'}",
    )
