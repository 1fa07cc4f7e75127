"""A node of Ray that dies, the head or a worker."""

from __future__ import annotations

from dataclasses import dataclass

from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import PYTHON
from raycluster.drill.cluster import DrillCluster
from raycluster.services.ray_node import HEAD
from raycluster.spec import ResolvedHost

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


@dataclass
class NodeFault:
    """A host's node of Ray is killed, with all that runs in it."""

    cluster: DrillCluster
    host: ResolvedHost

    @property
    def victim(self) -> str:
        return f"the {self.host.role} on {self.host.name}"

    def inject(self) -> None:
        """Kill Ray's own processes there."""
        shell = self.cluster.fleet[self.host.name].runtime.inside(self.host.role)
        try:
            done = shell.run((*PYTHON, "-c", KILL_RAY))
        except HostError:
            return  # the container ended before the command did
        if done.exit_code not in (0, 137):
            raise CommandError(
                done.error_text or "could not kill Ray",
                where=self.host.name,
                status=done.exit_code,
            )

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
        return back and self.cluster.is_recovered(seen[1])

    def revert(self) -> None:
        """Nothing: it comes back by itself."""

    @property
    def _former(self) -> str:
        node = self.cluster.before.node(self.host)
        return node.node_id if node else ""
