"""The processes that a spec wants on a host, and their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Process
from raycluster.services.gateway import GATEWAY, gateway, has_gateway
from raycluster.services.grafana import GRAFANA, grafana, has_grafana
from raycluster.services.prometheus import PROMETHEUS, has_prometheus, prometheus
from raycluster.services.ray_node import RAY_ROLES, head, worker
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

Service = Callable[[ClusterSpec, ResolvedHost, Wiring], Process | None]
SERVICES: tuple[Service, ...] = (head, worker, gateway, prometheus, grafana)
"""What may run on hosts; each returns None for a host where it does not run."""

_BESIDE = {GATEWAY: has_gateway, PROMETHEUS: has_prometheus, GRAFANA: has_grafana}


def desired(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[Process, ...]:
    """Return all that should run on the host, Ray first."""
    return tuple(p for service in SERVICES if (p := service(spec, host, wiring)))


def roles(spec: ClusterSpec, host: ResolvedHost) -> tuple[str, ...]:
    """Return the roles of all that should run on the host, Ray's first."""
    return tuple(_roles(spec, host))


def _roles(spec: ClusterSpec, host: ResolvedHost) -> Iterator[str]:
    if host.role in RAY_ROLES:
        yield host.role
    yield from (role for role, has in _BESIDE.items() if has(spec, host))


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
