"""A worker that the other hosts cannot reach any more."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from raycluster.core.errors import HostError
from raycluster.drill.cluster import DrillCluster
from raycluster.drill.node_fault import NodeFault
from raycluster.spec import ResolvedHost

_TABLE = "raycluster_drill"
_AS_ROOT = 'root=; [ "$(id -u)" = 0 ] || root="sudo -n"; PATH=$PATH:/usr/sbin:/sbin; '
_HEAL = f"{_AS_ROOT} $root nft delete table inet {_TABLE} 2>/dev/null; true"


@dataclass
class PartitionFault:
    """A worker's host is cut off from the cluster's other hosts; SSH to it goes on.

    `seconds` later the host lets the others in again by itself, whatever became of this program.
    """

    cluster: DrillCluster
    host: ResolvedHost
    seconds: float = 30.0

    @property
    def victim(self) -> str:
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
                f"cannot cut the host off: {done.error_text[:300]}",
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
            and self.cluster.is_recovered(seen[1])
        )

    def revert(self) -> None:
        """Let the others in now."""
        self.cluster.fleet[self.host.name].transport.run(("sh", "-c", _HEAL))


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
