"""What a person looks at inside a cluster: one host by name, and whether anything is there."""

from __future__ import annotations

from contextlib import suppress

from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.interfaces import Found
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.spec import ClusterSpec
from raycluster.state.ownership import of_another


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
