"""What a person looks at inside a cluster: one host by name, and whether anything is there."""

from __future__ import annotations

from contextlib import suppress

from raycluster.connect import Connected, Fleet
from raycluster.contracts import Found
from raycluster.errors import HostError, RayclusterError, UsageError
from raycluster.plan import of_another, roles
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec, ResolvedHost


def named_host(spec: ClusterSpec, name: str) -> ResolvedHost:
    """Return the host of this name. Raises UsageError."""
    for host in spec.hosts:
        if host.name == name:
            return host
    known = ", ".join(h.name for h in spec.hosts)
    raise UsageError(f"{name!r} is not a host in this cluster", hint=f"one of {known}")


def processes(spec: ClusterSpec) -> tuple[str, ...]:
    """Return the names of all processes: HOST for its Ray; ROLE, HOST/ROLE for what else runs."""
    beside = [(h.name, r) for h in spec.hosts for r in roles(spec, h) if r not in RAY_ROLES]
    hosts = (host.name for host in spec.hosts)
    return (*hosts, *dict.fromkeys(r for _, r in beside), *(f"{h}/{r}" for h, r in beside))


def role_of(spec: ClusterSpec, name: str) -> tuple[ResolvedHost, str]:
    """Return where a process runs and its role, for HOST, ROLE or HOST/ROLE. Raises UsageError.

    A host's name stands for its node of Ray, a role's for the first host that has it.
    """
    place, _, role = name.partition("/")
    if role:
        host = named_host(spec, place)
        if role in roles(spec, host):
            return host, role
        known = ", ".join(f"{place}/{each}" for each in roles(spec, host))
        raise UsageError(f"{place} runs no {role!r}", hint=f"one of {known}")
    for host in spec.hosts:
        if name != host.name and name in roles(spec, host) and name not in RAY_ROLES:
            return host, name
    host = named_host(spec, name)
    return host, host.role


def check_up(spec: ClusterSpec) -> None:
    """Raise HostError where the head can be seen and holds nothing of the cluster; never asks."""
    if _head(spec) == ():
        where = spec.hosts[0].name
        raise HostError("the cluster does not run here", where=where, hint="raycluster up")


def check_ours(spec: ClusterSpec) -> None:
    """Raise HostError where the head can be seen and has somebody else's cluster; never asks."""
    _head(spec)


def _head(spec: ClusterSpec) -> tuple[Found, ...] | RayclusterError:
    head = spec.hosts[0]
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
