"""A gateway that dies."""

from __future__ import annotations

from dataclasses import dataclass

from raycluster.core.errors import CommandError, HostError
from raycluster.drill.cluster import DrillCluster
from raycluster.services.gateway import GATEWAY
from raycluster.spec import ResolvedHost

STARTED = 'stat -c "%Y %i" "$RAYCLUSTER_ROOT/gateway/nginx.pid" 2>/dev/null'
KILL_GATEWAY = 'kill -9 "$(cat "$RAYCLUSTER_ROOT/gateway/nginx.pid")"'


@dataclass
class GatewayFault:
    """A host's gateway is killed."""

    cluster: DrillCluster
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
        # With nginx ends its container, and with that this command, with whatever status. A `kill`
        # that fails says why.
        said = done.error_text
        if done.exit_code and said:
            raise CommandError(
                f"could not kill nginx: {said}",
                where=self.host.name,
                status=done.exit_code,
                hint="raycluster status",
            )

    def noticed(self) -> bool:
        """Tell whether it was started anew, or is not there."""
        return self._started() != self._former

    def recovered(self) -> bool:
        """Tell whether it takes connections again."""
        if self._started() in ("", self._former):
            return False
        gate = self.cluster.spec.gateway
        try:
            near = gate.near if gate else ""
            transport = self.cluster.fleet[self.host.name].transport
            transport.connect((near, self.cluster.spec.ports.gateway), timeout=2).close()
        except HostError:
            return False
        return True

    def revert(self) -> None:
        """Nothing: it comes back by itself."""

    def _started(self) -> str:
        """Return when nginx was started last, or "" while it is not there."""
        shell = self.cluster.fleet[self.host.name].runtime.inside(GATEWAY)
        try:
            return shell.run(("sh", "-c", STARTED)).text.strip()
        except HostError:
            return ""
