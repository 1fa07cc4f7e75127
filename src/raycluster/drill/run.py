"""A drill from its beginning to its end: load, fault by its name, healing, figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raycluster.core.errors import DegradedError, HostError, UsageError
from raycluster.core.interfaces import Tell
from raycluster.drill.cluster import DrillCluster, Fault
from raycluster.drill.gateway_fault import GatewayFault
from raycluster.drill.load import SteadyLoad
from raycluster.drill.node_fault import NodeFault
from raycluster.drill.partition_fault import PartitionFault
from raycluster.drill.replica_fault import ReplicaFault
from raycluster.drill.report import Report
from raycluster.hosts.fleet import Fleet
from raycluster.observe.health import look
from raycluster.openai_client.target import Target
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ClusterSpec, ResolvedHost

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


@dataclass(frozen=True)
class DrillOptions:
    """What to break, where (empty: the drill chooses), under how much load; times in seconds."""

    fault: str
    host: str = ""
    rate: float = 5.0
    calm: float = 10.0
    limit: float = 600.0
    timeout: float = 60.0


def check(options: DrillOptions) -> None:
    """Raise UsageError for what cannot be."""
    if options.fault not in FAULTS:
        raise UsageError(f"{options.fault!r} is not a fault", hint=f"one of {', '.join(FAULTS)}")
    for option, value in (("--rate", options.rate), ("--limit", options.limit)):
        if not 0 < value < float("inf"):
            raise UsageError(
                f"{value:g} is not greater than zero", where=option, hint="use a number > 0"
            )


def prepare(spec: ClusterSpec, fleet: Fleet, options: DrillOptions) -> tuple[Fault, DrillCluster]:
    """Return the fault, ready to be injected, and what it befalls.

    Raises DegradedError unless all is well before.
    """
    health = look(spec, fleet)
    if health.problems:
        first = health.problems[0]
        raise DegradedError(
            f"{first.where}: {first.what}: a drill needs a healthy cluster",
            where=spec.cluster.name,
            hint="raycluster status",
        )
    token = health.state.token
    if token is None:
        raise HostError(
            "its records cannot be read", where=spec.head_host.name, hint="raycluster up"
        )
    cluster = DrillCluster(spec, fleet, health.state, token)
    return FAULTS[options.fault](cluster, options.host), cluster


def run(
    spec: ClusterSpec, fault: Fault, targets: Sequence[Target], options: DrillOptions, tell: Tell
) -> Report:
    """Break the cluster under load and wait until it is whole again, or for the limit.

    Whatever happens, what does not heal by itself is taken back.
    """
    tell(f"{options.rate:g} requests/s; in {options.calm:g} s: {options.fault}")
    with SteadyLoad(targets, options.rate, options.timeout) as load:
        time.sleep(options.calm)
        if not any(answer.ok for answer in load.answers):
            why = load.answers[0].error if load.answers else "no response within the timeout"
            raise HostError(
                f"no request succeeds even before the fault: {why}",
                where=targets[0].shown,
                hint="raycluster status",
            )
        began, since = load.now(), time.monotonic()
        try:
            tell(f"injecting the fault: {fault.victim}")
            fault.inject()
            injected_at = load.now()
            detect = wait(fault.noticed, since, options.limit)
            tell("noticed" if detect is None else f"noticed after {detect:.1f} s")
            recover = wait(fault.recovered, since, options.limit)
            tell("NOT recovered" if recover is None else f"recovered after {recover:.1f} s")
        finally:
            fault.revert()
        ended = load.now()
        time.sleep(min(2.0, options.calm))
    return Report(
        spec.cluster.name,
        options.fault,
        fault.victim,
        options.rate,
        sorted(load.answers, key=lambda answer: answer.at),
        began,
        injected_at,
        ended,
        detect,
        recover,
    )
