"""Hosts that leave the cluster: their replicas move first, then everything of ours is removed."""

from __future__ import annotations

from collections.abc import Iterable

from raycluster.connect import Connected
from raycluster.dashboard import dashboard
from raycluster.errors import RayclusterError
from raycluster.events import Event
from raycluster.observe import machine
from raycluster.poll import wait_for
from raycluster.ray_api import RayApi
from raycluster.services.firewall import remove_script
from raycluster.services.ray_node import HEAD
from raycluster.spec import ResolvedHost
from raycluster.work import Work

DRAIN_S = 120


def drain(work: Work, leaving: Iterable[ResolvedHost]) -> None:
    """Ask Ray to move what runs on leaving hosts, and wait until Serve has done so."""
    reached = work.fleet.reach(leaving, lambda connected: connected.address)
    names = {address: name for name, address in reached.items() if isinstance(address, str)}
    head = work.fleet[work.head.name]
    with dashboard(head, work.spec.ports.dashboard, work.token) as client:
        api = RayApi(work.head.name, client)
        nodes = {n.node_id: names[n.address] for n in api.nodes() if n.alive and n.address in names}
        for node_id, name in nodes.items():
            work.listen(Event(name, "draining: its replicas move to other hosts"))
            done = head.runtime.inside(HEAD).run(_drain_command(node_id), timeout=DRAIN_S)
            if done.exit_code:
                said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
                work.listen(Event(name, f"cannot be drained: {' '.join(said)}", "note"))

        def empty() -> bool | None:
            used = {r.node_id for a in api.apps() for r in a.replicas}
            return None if used & set(nodes) else True

        if nodes and wait_for(empty, timeout=DRAIN_S) is None:
            for name in nodes.values():
                work.listen(Event(name, "replicas are still there: no room elsewhere", "note"))


def _drain_command(node_id: str) -> tuple[str, ...]:
    return (
        *("ray", "drain-node", f"--node-id={node_id}"),
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=removed from the spec",
        f"--deadline-remaining-seconds={DRAIN_S}",
    )


def forget(work: Work, leaving: Iterable[ResolvedHost]) -> tuple[ResolvedHost, ...]:
    """Remove everything of ours from hosts that left; return those that could not be cleaned.

    A host that is in the spec under another name, with the same runtime, is left as it is.
    """
    hosts = {h.name: h for h in leaving}
    if not hosts:
        return ()
    staying = work.fleet.each(
        (h.name for h in work.spec.hosts), lambda c: (machine(c), c.host.kind)
    )

    def remove(connected: Connected) -> bool:
        if (machine(connected), connected.host.kind) in staying.values():
            return False
        connected.runtime.remove(None)
        connected.transport.run(("sh", "-c", remove_script(work.spec.cluster.name)))
        return True

    kept = []
    for name, result in work.fleet.reach(hosts.values(), remove).items():
        if isinstance(result, RayclusterError):
            kept.append(hosts[name])
            work.listen(Event(name, f"left the spec, and stays as it is: {result}", "note"))
        elif result:
            work.listen(Event(name, "removed", "done"))
    return tuple(kept)
