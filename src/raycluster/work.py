"""What one run of `up` works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raycluster.connect import Connected, Fleet
from raycluster.contracts import Secret
from raycluster.events import Event, Listener
from raycluster.observe import push_files
from raycluster.payload import members_file
from raycluster.services.wiring import Secrets, Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state import ClusterState


@dataclass(frozen=True)
class Work:
    """What one run of `up` works with."""

    spec: ClusterSpec
    fleet: Fleet
    token: Secret
    secrets: Secrets
    listen: Listener

    @property
    def head(self) -> ResolvedHost:
        """The head's host."""
        return self.spec.hosts[0]

    def tell(self, host: str) -> Callable[[str], None]:
        """Return what takes a host's lines of progress."""
        return lambda text: self.listen(Event(host, text))


def wiring(work: Work, state: ClusterState) -> Wiring:
    """Return what processes are made from, given the addresses that the hosts were reached at."""
    addresses = {name: host.address for name, host in state.hosts.items()}
    return Wiring(addresses, work.token, work.secrets)


def record(work: Work, state: ClusterState, members: tuple[ResolvedHost, ...]) -> None:
    """Note on the running nodes who belongs to the cluster."""
    content = members_file(members)

    def push(connected: Connected) -> None:
        push_files(connected.runtime.inside(connected.host.role), content)

    running = [
        name
        for name, host in state.hosts.items()
        if any(f.health == "running" and f.role == work.fleet[name].host.role for f in host.found)
    ]
    work.fleet.check()
    work.fleet.each(running, push)  # a node that just stopped gets the record when it is started
