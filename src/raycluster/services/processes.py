"""The processes that a spec wants on a host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raycluster.core.interfaces import Process
from raycluster.services.gateway import GATEWAY, gateway, has_gateway
from raycluster.services.grafana import GRAFANA, grafana, has_grafana
from raycluster.services.head import head
from raycluster.services.prometheus import PROMETHEUS, has_prometheus, prometheus
from raycluster.services.ray_node import RAY_ROLES, worker
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
