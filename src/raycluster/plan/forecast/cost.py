"""What the planned cluster costs per hour, and what changes by it; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raycluster.plan.planner import removed_hosts
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state.cluster import ClusterState
from raycluster.state.members import Member


@dataclass(frozen=True)
class CostChange:
    """Prices per hour in `currency`: of all hosts, and what joining and leaving hosts change.

    `unpriced` are hosts without a price, which count as nothing.
    """

    currency: str
    per_hour: float
    change: float
    unpriced: tuple[str, ...] = ()


def cost(spec: ClusterSpec, state: ClusterState) -> CostChange | None:
    """Return what the cluster will cost, or None where no host has a price."""
    if all(host.price_per_hour is None for host in spec.hosts):
        return None
    leaving = [former.member for former in removed_hosts(spec, state)]
    joining = [host for host in spec.hosts if not state.hosts[host.name].found]
    prices = [(h.name, h.price_per_hour) for h in spec.hosts]
    prices += [(m.name, m.price_per_hour) for m in leaving]
    return CostChange(
        currency=spec.cluster.currency,
        per_hour=_sum(spec.hosts),
        change=_sum(joining) - _sum(leaving),
        unpriced=tuple(name for name, price in prices if price is None),
    )


def _sum(hosts: Iterable[ResolvedHost | Member]) -> float:
    return round(sum(host.price_per_hour or 0 for host in hosts), 6)
