"""What one run of `up` works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raycluster.connect import Connected, Fleet
from raycluster.contracts import Secret
from raycluster.events import Event, Listener
from raycluster.members import Former, member_of, members_file
from raycluster.observe import push_files
from raycluster.services.ray_node import MEMBERS_FILE
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


def recorded(work: Work, former: Iterable[Former]) -> dict[str, bytes]:
    """Return the file that says who belongs to the cluster, with hosts that left the spec."""
    members = (*map(member_of, work.spec.hosts), *(each.member for each in former))
    return {MEMBERS_FILE: members_file(members)}


def record(work: Work, state: ClusterState, former: Iterable[Former]) -> None:
    """Note on the running nodes who belongs to the cluster, with hosts that left the spec."""
    content = recorded(work, former)

    def push(connected: Connected) -> None:
        push_files(connected.runtime.inside(connected.host.role), content)

    running = [
        name
        for name, host in state.hosts.items()
        if any(f.health == "running" and f.role == work.fleet[name].host.role for f in host.found)
    ]
    work.fleet.each(running, push)  # a node that just stopped gets the record when it is started
