"""The faults that a drill knows, by the names that people give."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from raycluster.core.errors import UsageError
from raycluster.drill.cluster import DrillCluster, Fault
from raycluster.drill.gateway_fault import GatewayFault
from raycluster.drill.node_fault import NodeFault
from raycluster.drill.partition_fault import PartitionFault
from raycluster.drill.replica_fault import ReplicaFault
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ResolvedHost

Maker = Callable[[DrillCluster, str], Fault]


def _host(cluster: DrillCluster, name: str, role: str) -> ResolvedHost:
    """Return the host to break: the named one, or the last that has this role."""
    hosts = [h for h in cluster.spec.hosts if role in (h.role, "")]
    for host in cluster.spec.hosts:
        if host.name == name and (host in hosts):
            return host
    if name or not hosts:
        shown = name or cluster.spec.cluster.name
        raise UsageError(f"{shown} has no {role or 'host'} for this fault", hint="see --help")
    return hosts[-1]


def _gateway(cluster: DrillCluster, name: str) -> Fault:
    gate = cluster.spec.gateway
    if gate is None:
        raise UsageError("the spec has no gateway", hint="choose another fault")
    return GatewayFault(cluster, _host(cluster, name, "" if gate.on == "all" else HEAD))


FAULTS: Mapping[str, Maker] = {
    "replica": lambda cluster, name: ReplicaFault(cluster, "KILL", name),
    "hang": lambda cluster, name: ReplicaFault(cluster, "STOP", name),
    "worker": lambda cluster, name: NodeFault(cluster, _host(cluster, name, WORKER)),
    "head": lambda cluster, name: NodeFault(cluster, _host(cluster, name, HEAD)),
    "gateway": _gateway,
    "partition": lambda cluster, name: PartitionFault(cluster, _host(cluster, name, WORKER)),
}
"""The faults by the name that a person gives."""


def wait(condition: Callable[[], bool], since: float, limit: float) -> float | None:
    """Return the seconds from `since` (monotonic) until the condition held, None after `limit`."""
    while time.monotonic() - since < limit:
        if condition():
            return time.monotonic() - since
        time.sleep(0.2)
    return None
