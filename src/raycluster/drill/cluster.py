"""What a drill sees of the cluster, and what every fault is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from raycluster.core.errors import RayclusterError
from raycluster.core.interfaces import Secret
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.ray_api import RayApi, open_ray_api
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, RayNode


@dataclass(frozen=True)
class DrillCluster:
    """What faults look at: the spec, its connected hosts, and what was there before."""

    spec: ClusterSpec
    fleet: Fleet
    before: ClusterState
    token: Secret

    def api(self) -> AbstractContextManager[RayApi]:
        """Yield Ray's API on the head."""
        head = self.fleet[self.spec.head_host.name]
        return open_ray_api(head, self.spec.ports.dashboard, self.token, timeout=5)

    def seen(self) -> tuple[tuple[RayNode, ...], tuple[App, ...]] | None:
        """Return Ray's nodes and Serve's applications now, or None while the head is away."""
        try:
            with self.api() as api:
                return api.nodes(), api.apps()
        except RayclusterError:
            return None

    def is_recovered(self, apps: tuple[App, ...]) -> bool:
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

    def inject(self) -> None:
        """Break it. Raises RayclusterError."""

    def noticed(self) -> bool:
        """Tell whether the cluster knows of it."""

    def recovered(self) -> bool:
        """Tell whether all is as before."""

    def revert(self) -> None:
        """Take back what does not heal by itself; may be called at any time."""
