"""What a drill breaks: one class for each fault, all with `inject`, `noticed` and `recovered`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from raycluster.connect import Fleet
from raycluster.contracts import Secret
from raycluster.errors import CommandError, HostError, RayclusterError, UsageError
from raycluster.ray_api import RayApi
from raycluster.services.gateway import GATEWAY
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state import App, ClusterState, RayNode, Replica
from raycluster.transports.http import http_client

KILL_RAY = """\
import os, signal
root = os.environ["RAYCLUSTER_ROOT"]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        name = open(f"/proc/{pid}/comm").read().strip()
        mine = f"RAYCLUSTER_ROOT={root}\\0".encode() in open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        continue
    if mine and name in ("raylet", "gcs_server"):
        os.kill(int(pid), signal.SIGKILL)
"""
"""Kills a node of Ray, whose other processes end with it; another cluster's nodes live on."""

STARTED = 'stat -c "%Y %i" "$RAYCLUSTER_ROOT/gateway/nginx.pid" 2>/dev/null'
KILL_GATEWAY = 'kill -9 "$(cat "$RAYCLUSTER_ROOT/gateway/nginx.pid")"'


@dataclass(frozen=True)
class Cluster:
    """What faults look at: the spec, its connected hosts, and what was there before."""

    spec: ClusterSpec
    fleet: Fleet
    before: ClusterState
    token: Secret

    @contextmanager
    def api(self) -> Iterator[RayApi]:
        """Yield Ray's API on the head."""
        head = self.spec.hosts[0].name
        transport = self.fleet[head].transport
        port, token = self.spec.ports.dashboard, self.token.reveal()
        with http_client(transport, port, token=token, timeout=5) as client:
            yield RayApi(head, client)

    def seen(self) -> tuple[tuple[RayNode, ...], tuple[App, ...]] | None:
        """Return Ray's nodes and Serve's applications now, or None while the head is away."""
        try:
            with self.api() as api:
                return api.nodes(), api.apps()
        except RayclusterError:
            return None

    def whole(self, apps: tuple[App, ...]) -> bool:
        """Tell whether every application runs as many replicas as before, and no more."""
        now = {app.name: app for app in apps}
        return all(
            app.name in now
            and now[app.name].running
            and now[app.name].serving >= app.serving
            and now[app.name].alive <= app.alive
            for app in self.before.apps or ()
        )


class Fault(Protocol):
    """One way to break a cluster. `victim` says what; `host` where."""

    @property
    def victim(self) -> str:
        """What is broken, for people."""
        ...

    def inject(self) -> None:
        """Break it. Raises RayclusterError."""
        ...

    def noticed(self) -> bool:
        """Tell whether the cluster knows of it."""
        ...

    def recovered(self) -> bool:
        """Tell whether all is as before."""
        ...

    def heal(self) -> None:
        """Take back what does not heal by itself; may be called at any time."""
        ...


@dataclass
class ReplicaFault:
    """A replica's process gets a signal: KILL ends it, STOP makes it hang."""

    cluster: Cluster
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
            f"no replica runs on {self.host_name or 'any host'}", hint="raycluster status"
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
        return seen is not None and not self._state(seen[1]) and self.cluster.whole(seen[1])

    def heal(self) -> None:
        """Let a stopped one go on, if it is still there."""
        if self.signal == "STOP":
            try:
                _signal(self.cluster, *self.chosen, "CONT")
            except HostError:
                return  # Serve has ended it

    def _state(self, apps: tuple[App, ...]) -> str:
        mine = self.chosen[1].replica_id
        return next((r.state for a in apps for r in a.replicas if r.replica_id == mine), "")


@dataclass
class NodeFault:
    """A host's node of Ray is killed, with all that runs in it."""

    cluster: Cluster
    host: ResolvedHost

    @property
    def victim(self) -> str:
        """The host."""
        return f"the {self.host.role} on {self.host.name}"

    def inject(self) -> None:
        """Kill Ray's own processes there."""
        shell = self.cluster.fleet[self.host.name].runtime.inside(self.host.role)
        try:
            shell.run(("python", "-c", KILL_RAY))
        except HostError:
            return  # the container ended before the command did

    def noticed(self) -> bool:
        """Tell whether the head is away, or counts the node as dead."""
        seen = self.cluster.seen()
        return seen is None or not any(n.alive and n.node_id == self._former for n in seen[0])

    def recovered(self) -> bool:
        """Tell whether the host is a node again, and all replicas are back."""
        seen = self.cluster.seen()
        if seen is None:
            return False
        address = self.cluster.before.hosts[self.host.name].address
        back = any(
            node.alive
            and node.node_id != self._former
            and (node.is_head if self.host.role == HEAD else node.address == address)
            for node in seen[0]
        )
        return back and self.cluster.whole(seen[1])

    def heal(self) -> None:
        """Nothing: it comes back by itself."""

    @property
    def _former(self) -> str:
        node = self.cluster.before.node(self.host)
        return node.node_id if node else ""


@dataclass
class GatewayFault:
    """A host's gateway is killed."""

    cluster: Cluster
    host: ResolvedHost

    def __post_init__(self) -> None:
        self._former = self._started()

    @property
    def victim(self) -> str:
        """The gateway's host."""
        return f"the gateway on {self.host.name}"

    def inject(self) -> None:
        """Kill nginx."""
        shell = self.cluster.fleet[self.host.name].runtime.inside(GATEWAY)
        try:
            done = shell.run(("sh", "-c", KILL_GATEWAY))
        except HostError:
            return  # the container ended before the command did
        if done.exit_code not in (0, 137):
            raise CommandError(
                done.stderr.decode(errors="replace").strip() or "nginx could not be killed",
                where=self.host.name,
                status=done.exit_code,
            )

    def noticed(self) -> bool:
        """Tell whether it was started anew, or is not there."""
        return self._started() != self._former

    def recovered(self) -> bool:
        """Tell whether it takes connections again."""
        if self._started() in ("", self._former):
            return False
        gate = self.cluster.spec.gateway
        address = gate.address if gate else ""
        try:
            near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
            transport = self.cluster.fleet[self.host.name].transport
            transport.connect((near, self.cluster.spec.ports.gateway), timeout=2).close()
        except HostError:
            return False
        return True

    def heal(self) -> None:
        """Nothing: it comes back by itself."""

    def _started(self) -> str:
        """Return when nginx was started last, or "" while it is not there."""
        shell = self.cluster.fleet[self.host.name].runtime.inside(GATEWAY)
        try:
            return shell.run(("sh", "-c", STARTED)).text.strip()
        except HostError:
            return ""


@dataclass
class PartitionFault:
    """A worker's host is cut off from the cluster's other hosts; SSH to it goes on.

    `seconds` later the host lets the others in again by itself, whatever became of this program.
    """

    cluster: Cluster
    host: ResolvedHost
    seconds: float = 30.0

    @property
    def victim(self) -> str:
        """The host."""
        return f"the network between {self.host.name} and the other hosts"

    def inject(self) -> None:
        """Let packets vanish. Raises HostError where the user may not."""
        peers = [
            host.address
            for name, host in self.cluster.before.hosts.items()
            if name != self.host.name and host.address
        ]
        script = partition_script(peers, self.seconds)
        done = self.cluster.fleet[self.host.name].transport.run(("sh", "-c", script))
        if done.exit_code != 0:
            raise HostError(
                f"cannot cut it off: {done.stderr.decode(errors='replace').strip()[:300]}",
                where=self.host.name,
                hint="a partition needs root, or sudo without a password, and nft on the host",
            )

    def noticed(self) -> bool:
        """Tell whether Ray counts the node as dead."""
        return NodeFault(self.cluster, self.host).noticed()

    def recovered(self) -> bool:
        """Tell whether the host is a node, the former one or a new one, with all replicas."""
        seen = self.cluster.seen()
        address = self.cluster.before.hosts[self.host.name].address
        return (
            seen is not None
            and any(n.alive and n.address == address for n in seen[0])
            and self.cluster.whole(seen[1])
        )

    def heal(self) -> None:
        """Let the others in now."""
        self.cluster.fleet[self.host.name].transport.run(("sh", "-c", _HEAL))


_TABLE = "raycluster_drill"
_AS_ROOT = 'root=; [ "$(id -u)" = 0 ] || root="sudo -n"; PATH=$PATH:/usr/sbin:/sbin; '
_HEAL = f"{_AS_ROOT} $root nft delete table inet {_TABLE} 2>/dev/null; true"


def partition_script(peers: list[str], seconds: float) -> str:
    """Return a shell script that drops packets to and from `peers`, and ends that by itself."""
    rules = "\n".join(_rules(peers))
    table = (
        f"add table inet {_TABLE}; delete table inet {_TABLE}\ntable inet {_TABLE} {{\n{rules}\n}}"
    )
    later = f"sleep {seconds:g}; $root nft delete table inet {_TABLE}"
    return (
        f"{_AS_ROOT} export root PATH\n"
        f"printf '%s\\n' {shlex.quote(table)} | $root nft -f - || exit 1\n"
        f"nohup setsid sh -c {shlex.quote(later)} </dev/null >/dev/null 2>&1 &\n"
    )


def _rules(peers: list[str]) -> Iterator[str]:
    for chain, side in (("input", "saddr"), ("output", "daddr")):
        yield f"chain {chain} {{ type filter hook {chain} priority -300;"
        for peer in peers:
            yield f"{'ip6' if ':' in peer else 'ip'} {side} {peer} drop;"
        yield "}"


def _signal(cluster: Cluster, host: ResolvedHost, replica: Replica, signal: str) -> None:
    shell = cluster.fleet[host.name].runtime.inside(host.role)
    done = shell.run(("sh", "-c", f"kill -{signal} {replica.pid}"))
    if done.exit_code != 0:
        raise CommandError(
            f"cannot send SIG{signal} to a replica: {done.stderr.decode(errors='replace').strip()}",
            where=host.name,
            status=done.exit_code,
        )


Maker = Callable[[Cluster, str], Fault]


def _host(cluster: Cluster, name: str, role: str) -> ResolvedHost:
    """Return the host to break: the named one, or the last that has this role."""
    hosts = [h for h in cluster.spec.hosts if role in (h.role, "")]
    for host in cluster.spec.hosts:
        if host.name == name and (host in hosts):
            return host
    if name or not hosts:
        shown = name or cluster.spec.cluster.name
        raise UsageError(f"{shown} has no {role or 'host'} to break", hint="see --help")
    return hosts[-1]


def _gateway(cluster: Cluster, name: str) -> Fault:
    gate = cluster.spec.gateway
    if gate is None:
        raise UsageError("the spec has no gateway to break", hint="choose another fault")
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
