"""Waits for what was started: services that listen, a head that answers, nodes that have joined."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from raycluster.apply.context import ApplyContext
from raycluster.core.errors import (
    HostError,
)
from raycluster.core.events import Event
from raycluster.core.interfaces import Process
from raycluster.core.wait import raise_lasting, wait_for
from raycluster.hosts.fleet import Connected
from raycluster.observe.cluster import observe
from raycluster.observe.facts import read_listening
from raycluster.observe.liveness import EARLY_S, no_start, raise_if_dead
from raycluster.plan.actions import Start
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ResolvedHost
from raycluster.state.cluster import ClusterState

FORWARD_TRIES = 10
"""So often a port at which the host listens may not be reached through the connection to it."""


SERVICE_S = 60
"""Seconds for a service to listen; Prometheus replays what it has stored before."""


def wait_for_service(connected: Connected, process: Process) -> None:
    """Wait until the process listens on all its ports. Raises HostError with its last words."""

    def listens() -> bool | None:
        raise_if_dead(connected, process.role)
        listening = read_listening(connected.transport)
        return True if listening.issuperset(process.ports.values()) else None

    if wait_for(listens, timeout=SERVICE_S) is None:
        raise no_start(connected, process.role, f"the {process.role} is not listening")


def wait_for_head(work: ApplyContext) -> None:
    """Wait until the head's control store takes connections: workers can join from then on."""
    connected = work.fleet[work.head.name]

    listened = 0

    def answers() -> bool | None:
        nonlocal listened
        try:
            connected.transport.connect(("127.0.0.1", work.spec.ports.gcs), timeout=5).close()
        except HostError as error:
            raise_lasting(error)
            raise_if_dead(connected, HEAD)
            listened += work.spec.ports.gcs in read_listening(connected.transport)
            if listened > FORWARD_TRIES:  # it is there, and the way to it is not
                raise
            return None
        return True

    if wait_for(answers, timeout=work.spec.cluster.node_timeout) is None:
        raise no_start(connected, HEAD, "Ray's control store (GCS) did not start")


def former_nodes(
    work: ApplyContext, state: ClusterState, starts: Iterable[Start]
) -> frozenset[str]:
    """Return the ids of the nodes that these starts of workers replace.

    Ray counts a node that was killed among the live ones for some seconds.
    """
    started = {s.host for s in starts if s.process.role == WORKER}
    nodes = (state.node(h) for h in work.spec.hosts if h.name in started)
    return frozenset(node.node_id for node in nodes if node)


def wait_for_nodes(
    work: ApplyContext, hosts: Collection[ResolvedHost], former: frozenset[str] = frozenset()
) -> None:
    """Wait until Ray counts these hosts among its live nodes, by other ids than the former."""
    pending = {h.name for h in hosts}
    early = time.monotonic() + EARLY_S
    down: dict[str, float] = {}

    def joined() -> bool | None:
        state = observe(work.spec, work.fleet)
        raise_lasting(state.head_problem)
        for host in work.spec.hosts:
            node = state.node(host)
            if host.name in pending and node and node.node_id not in former:
                pending.discard(host.name)
                work.listen(Event(host.name, "has joined", "done"))
        now = time.monotonic()
        for name in pending if now < early else ():
            raise_if_dead(work.fleet[name], work.fleet[name].host.role)
        for name in pending:
            raise_lasting(state.hosts[name].problem)
            runs = state.hosts[name].problem or state.runs(work.fleet[name].host)
            since = down.setdefault(name, now)
            if runs:
                del down[name]
            elif now - since > EARLY_S:  # whoever starts it again has tried by then
                raise_if_dead(work.fleet[name], work.fleet[name].host.role)
        return None if pending else True

    if wait_for(joined, timeout=work.spec.cluster.node_timeout) is None:
        late = work.fleet[sorted(pending)[0]]
        raise no_start(late, late.host.role, "did not join the cluster")
