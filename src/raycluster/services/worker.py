"""A worker: one more node of Ray, which holds replicas."""

from __future__ import annotations

from raycluster.core.interfaces import Process
from raycluster.services.ray_node import WORKER, ray_node
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.types import bracketed


def worker(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that joins `host` to the head."""
    if host.role != WORKER:
        return None
    head = bracketed(wiring.addresses[spec.head_host.name])
    return ray_node(spec, host, wiring, WORKER, (f"--address={head}:{spec.ports.gcs}",))
