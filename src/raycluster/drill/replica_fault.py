"""A replica that dies, or hangs."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycluster.core.errors import CommandError, HostError, UsageError
from raycluster.drill.cluster import DrillCluster
from raycluster.spec import ResolvedHost
from raycluster.state.cluster import App, Replica


@dataclass
class ReplicaFault:
    """A replica's process gets a signal: KILL ends it, STOP makes it hang."""

    cluster: DrillCluster
    signal: str = "KILL"
    host_name: str = ""
    chosen: tuple[ResolvedHost, Replica] = field(init=False)

    def __post_init__(self) -> None:
        replicas = [r for app in self.cluster.before.apps or () for r in app.replicas if r.pid]
        for host in self.cluster.spec.hosts:
            node = self.cluster.before.node(host)
            for replica in replicas:
                wanted = self.host_name in ("", host.name)
                if wanted and node and replica.node_id == node.node_id:
                    self.chosen = (host, replica)
                    return
        raise UsageError(
            f"no replica is running on {self.host_name or 'any host'}", hint="raycluster status"
        )

    @property
    def victim(self) -> str:
        """The replica and its host."""
        host, replica = self.chosen
        return f"replica {replica.replica_id} on {host.name}"

    def inject(self) -> None:
        """Send the signal."""
        _signal(self.cluster, *self.chosen, self.signal)

    def noticed(self) -> bool:
        """Tell whether Serve no longer counts it as running."""
        seen = self.cluster.seen()
        return seen is not None and self._state(seen[1]) != "RUNNING"

    def recovered(self) -> bool:
        """Tell whether another took its place."""
        seen = self.cluster.seen()
        return seen is not None and not self._state(seen[1]) and self.cluster.is_recovered(seen[1])

    def revert(self) -> None:
        """Let a stopped one go on, if it is still there."""
        if self.signal == "STOP":
            try:
                _signal(self.cluster, *self.chosen, "CONT")
            except HostError:
                return  # Serve has ended it

    def _state(self, apps: tuple[App, ...]) -> str:
        mine = self.chosen[1].replica_id
        return next((r.state for a in apps for r in a.replicas if r.replica_id == mine), "")


def _signal(cluster: DrillCluster, host: ResolvedHost, replica: Replica, signal: str) -> None:
    shell = cluster.fleet[host.name].runtime.inside(host.role)
    done = shell.run(("sh", "-c", f"kill -{signal} {replica.pid}"))
    if done.exit_code != 0:
        raise CommandError(
            f"cannot send SIG{signal} to a replica: {done.error_text}",
            where=host.name,
            status=done.exit_code,
        )
