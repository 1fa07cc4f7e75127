"""What was seen of a cluster at one moment; frozen, and nothing else than seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raycluster.core.errors import RayclusterError, RecordError
from raycluster.core.interfaces import Found, Secret
from raycluster.spec import ResolvedHost
from raycluster.state.members import Member

UNREAD = "?"


@dataclass(frozen=True)
class HostState:
    """One host: the address it was reached at and our processes there, or why it was not seen.

    `live` tells, by role, which live files a process has read that has to be told of new ones;
    `firewall` tells our rules apart that are in force there, and is empty where there are none; it
    is UNREAD where there may be some, and the host could not tell. `firewall_owner` is whose they
    are, "" where that was not noted.
    """

    name: str
    address: str = ""
    found: tuple[Found, ...] = ()
    live: Mapping[str, str] = field(default_factory=dict)
    firewall: str = ""
    problem: RayclusterError | None = None
    firewall_owner: str = ""

    def role(self, role: str) -> Found | None:
        """Return the process that has this role."""
        return next((f for f in self.found if f.role == role), None)


@dataclass(frozen=True)
class RayNode:
    """A node as Ray's control store sees it; models are placed by its `label`."""

    address: str
    node_id: str
    alive: bool
    is_head: bool = False
    cpus: float = 0
    gpus: float = 0
    label: str = ""


@dataclass(frozen=True)
class Replica:
    """One replica of a model."""

    replica_id: str
    state: str
    node_id: str = ""
    address: str = ""
    pid: int = 0


@dataclass(frozen=True)
class App:
    """One Serve application: `status` is Serve's word, `config` what it was deployed from.

    `wanted` is how many replicas Serve wants now, None where it does not tell.
    """

    name: str
    status: str
    message: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    replicas: tuple[Replica, ...] = ()
    wanted: int | None = None

    @property
    def running(self) -> bool:
        """True when Serve says that it serves."""
        return self.status == "RUNNING"

    @property
    def asleep(self) -> bool:
        """True when it serves without a replica, which the next request starts."""
        return self.running and not self.replicas

    @property
    def failed(self) -> bool:
        """True when its latest version did not start; the one before may go on serving."""
        return self.status == "DEPLOY_FAILED"

    @property
    def serving(self) -> int:
        """The number of replicas that take requests, of whichever version."""
        return sum(r.state == "RUNNING" for r in self.replicas)

    @property
    def still_serving(self) -> str:
        """What to say of the replicas that serve although the newest version failed, or ""."""
        if not self.failed or not self.serving:
            return ""
        count = "1 replica" if self.serving == 1 else f"{self.serving} replicas"
        return f"the previous version keeps serving ({count})"

    @property
    def alive(self) -> int:
        """The number of replicas that run or start."""
        return sum(r.state != "STOPPING" for r in self.replicas)


@dataclass(frozen=True)
class ClusterState:
    """Hosts by name; `members` are those that an earlier `up` recorded.

    `unread` says why no host's record of them, or of the token, could be read. `nodes` and `apps`
    are None while the head does not answer.
    """

    hosts: Mapping[str, HostState]
    token: Secret | None = None
    members: tuple[Member, ...] = ()
    unread: RecordError | None = None
    nodes: tuple[RayNode, ...] | None = None
    apps: tuple[App, ...] | None = None
    head_problem: RayclusterError | None = None

    @property
    def exists(self) -> bool:
        """True when any process of ours was seen anywhere."""
        return any(h.found for h in self.hosts.values())

    def runs(self, host: ResolvedHost) -> bool:
        """Tell whether the host was seen to run its node of Ray."""
        found = self.hosts[host.name].role(host.role)
        return found is not None and found.health == "running" and not self.problem(host)

    def problem(self, host: ResolvedHost) -> RayclusterError | None:
        """Return why nothing can be done on this host."""
        return self.hosts[host.name].problem

    def node(self, host: ResolvedHost) -> RayNode | None:
        """Return Ray's live node on this host; Ray may call the head by another address."""
        if host.role == "head":
            return next((node for node in self.nodes or () if node.alive and node.is_head), None)
        return self._alive.get(self.hosts[host.name].address)

    @cached_property
    def _alive(self) -> Mapping[str, RayNode]:
        """The live nodes by address."""
        return {node.address: node for node in reversed(self.nodes or ()) if node.alive}
