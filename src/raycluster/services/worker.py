"""A worker: one more node of Ray, which holds replicas."""

from __future__ import annotations

from raycluster.contracts import Process
from raycluster.services.ray_node import WORKER, ray_node
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost


def worker(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that joins `host` to the head."""
    if host.role != WORKER:
        return None
    address = wiring.addresses[spec.hosts[0].name]
    shown = f"[{address}]" if ":" in address else address
    return ray_node(spec, host, wiring, WORKER, (f"--address={shown}:{spec.ports.gcs}",))
