"""What one run of `up` works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from raycluster.core.events import Event, Listener
from raycluster.core.interfaces import Secret
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.ray_api import RayApi, open_ray_api
from raycluster.hosts.remote_files import push_files
from raycluster.services.ray_node import MEMBERS_FILE
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState
from raycluster.state.members import Former, member_of, members_file


@dataclass(frozen=True)
class ApplyContext:
    """What one run of `up` works with."""

    spec: ClusterSpec
    fleet: Fleet
    token: Secret
    secrets: Secrets
    listen: Listener

    @property
    def head(self) -> ResolvedHost:
        """The head's host."""
        return self.spec.head_host

    def tell(self, host: str) -> Callable[[str], None]:
        """Return what takes a host's lines of progress."""
        return lambda text: self.listen(Event(host, text))


def wiring(work: ApplyContext, state: ClusterState) -> Wiring:
    """Return what processes are made from, given the addresses that the hosts were reached at."""
    addresses = {name: host.address for name, host in state.hosts.items()}
    return Wiring(addresses, work.token, work.secrets)


def recorded(work: ApplyContext, former: Iterable[Former]) -> dict[str, bytes]:
    """Return the file that says who belongs to the cluster, with hosts that left the spec."""
    members = (*map(member_of, work.spec.hosts), *(each.member for each in former))
    return {MEMBERS_FILE: members_file(members)}


def record(work: ApplyContext, state: ClusterState, former: Iterable[Former]) -> None:
    """Note on the running nodes who belongs to the cluster, with hosts that left the spec."""
    content = recorded(work, former)

    def push(connected: Connected) -> None:
        push_files(connected.runtime.inside(connected.host.role), content)

    running = [
        name
        for name, host in state.hosts.items()
        if any(f.health == "running" and f.role == work.fleet[name].host.role for f in host.found)
    ]
    work.fleet.check()
    work.fleet.each(running, push)  # a node that just stopped gets the record when it is started


def ray_api(work: ApplyContext) -> AbstractContextManager[RayApi]:
    """Yield Ray's API on the head."""
    return open_ray_api(work.fleet[work.head.name], work.spec.ports.dashboard, work.token)
