"""Whether a cluster is there and ours, and whether its processes live, told by their own logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.interfaces import Found
from raycluster.core.last_words import last_words
from raycluster.core.untrusted import end_of
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.serve.rootcause import last_exception
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec
from raycluster.state.members import of_another

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


def check_up(spec: ClusterSpec) -> None:
    """Raise HostError where the head can be seen and holds nothing of the cluster; never asks."""
    if _head(spec) == ():
        where = spec.head_host.name
        raise HostError("the cluster does not run here", where=where, hint="raycluster up")


def check_ours(spec: ClusterSpec) -> None:
    """Raise HostError where the head can be seen and has somebody else's cluster; never asks."""
    _head(spec)


def _head(spec: ClusterSpec) -> tuple[Found, ...] | RayclusterError:
    head = spec.head_host
    with Fleet(spec.cluster.name, 1) as fleet:
        found = fleet.reach([head], lambda connected: connected.runtime.observe())[head.name]
    if not isinstance(found, RayclusterError) and (error := of_another(spec, head.name, found)):
        raise error
    return found


def ours(spec: ClusterSpec, connected: Connected) -> Connected:
    """Return the host. Raises HostError where it is seen to have somebody else's cluster."""
    found: tuple[Found, ...] = ()
    with suppress(HostError):  # what is done there next tells it
        found = connected.runtime.observe()
    if error := of_another(spec, connected.host.name, found):
        raise error
    return connected
