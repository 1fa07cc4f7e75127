"""The processes that a spec wants on a host."""

from __future__ import annotations

from collections.abc import Callable

from raycluster.core.interfaces import Process, Secret
from raycluster.services.gateway import gateway
from raycluster.services.grafana import grafana
from raycluster.services.head import head
from raycluster.services.prometheus import prometheus
from raycluster.services.ray_node import worker
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

Service = Callable[[ClusterSpec, ResolvedHost, Wiring], Process | None]
SERVICES: tuple[Service, ...] = (head, worker, gateway, prometheus, grafana)
"""What may run on hosts; each returns None for a host where it does not run."""


def desired(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[Process, ...]:
    """Return all that should run on the host, Ray first."""
    return tuple(p for service in SERVICES if (p := service(spec, host, wiring)))


def roles(spec: ClusterSpec, host: ResolvedHost) -> tuple[str, ...]:
    """Return the roles of all that should run on the host, Ray's first."""
    anywhere = Wiring({h.name: "" for h in spec.hosts}, Secret(""))
    return tuple(process.role for process in desired(spec, host, anywhere))
