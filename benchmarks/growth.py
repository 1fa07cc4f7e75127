"""What the program computes for a cluster of many hosts: CPU seconds at 3 to 1,000 of them.

    python -m benchmarks.growth [--hosts 3 50 200 1000] [--rounds 5]

A gateway on each host with a certificate that signs itself, firewall rules, Prometheus, one model.
Each round times every size in turn: what `up` and `plan` compare (`plan`), what `status` judges
(`judge`), and Prometheus's lists of nodes and gateways (`prometheus`). Prints medians, and how many
times those of 50 hosts they are, beside how many times 50 the hosts are; raw figures go to
benchmarks/results/. Ends with 1 when the largest takes over twice its share of 50 hosts' time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from benchmarks.figures import Limit, keep
from raycluster.core.interfaces import Found, Secret, Versions
from raycluster.observe.diagnosis import diagnose
from raycluster.plan.planner import plan_nodes
from raycluster.services import certificate, firewall, prometheus
from raycluster.services.processes import roles
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode
from raycluster.state.members import member_of

BASE = 50
MOST = 2.0


class Cluster:
    """A spec of so many hosts, and its state while all of them run."""

    def __init__(self, count: int) -> None:
        address = [f"10.{n // 62500}.{n // 250 % 250}.{n % 250 + 1}" for n in range(count)]
        self.spec = ClusterSpec.model_validate(
            {
                "cluster": {"name": "growth"},
                "head": {"host": address[0]},
                "workers": [{"host": a, "name": f"w{n}"} for n, a in enumerate(address[1:], 1)],
                "models": [{"name": "org/model"}],
                "gateway": {"on": "all", "tls": {"self_signed": True}},
                "firewall": {"manage": True},
                "monitoring": {},
            }
        )
        self.wiring = Wiring({h.name: h.host for h in self.spec.hosts}, Secret("t" * 64))
        versions = Versions("3.12.0", "2.60.0")
        self.state = ClusterState(
            {
                h.name: HostState(
                    h.name,
                    h.host,
                    tuple(Found(r, "0", "running", versions) for r in roles(self.spec, h)),
                )
                for h in self.spec.hosts
            },
            members=tuple(map(member_of, self.spec.hosts)),
            nodes=tuple(
                RayNode(h.host, h.name, alive=True, is_head=h.role == "head")
                for h in self.spec.hosts
            ),
            apps=(App("org-model", "RUNNING"),),
        )

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return what is timed, by name."""
        return {
            "plan": lambda: plan_nodes(self.spec, self.state, self.wiring),
            "judge": lambda: diagnose(self.spec, self.state, ()),
            "prometheus": lambda: (
                prometheus.nodes(self.spec, self.wiring),
                prometheus.gateways(self.spec, self.wiring),
            ),
        }


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the work, which finds nothing that was made before."""
    certificate._signed.cache_clear()
    certificate.expiry.cache_clear()
    firewall._rendered.cache_clear()
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Time all, and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, nargs="+", default=[3, BASE, 200, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    clusters = {count: Cluster(count).parts() for count in sorted({BASE, *asked.hosts})}
    rows: list[dict[str, object]] = []
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(asked.rounds):
        for count, parts in clusters.items():
            for part, work in parts.items():
                took = seconds(work)
                found.setdefault((part, count), []).append(took)
                rows.append({"round": turn, "hosts": count, "part": part, "seconds": took})
    limits = []
    for (part, count), each in sorted(found.items()):
        times = median(each) / median(found[part, BASE])
        spread = f"{min(each):.4f} to {max(each):.4f}"
        print(f"{part:<12}{count:>6} hosts {median(each):9.4f} s ({spread})  x{times:.2f}")
        if count > BASE and count == max(clusters):
            limits.append(Limit(f"{part}: times {BASE} hosts", times, MOST * count / BASE))
    keep("growth", rows, limits)
    raise SystemExit(not all(limit.kept for limit in limits))


if __name__ == "__main__":
    main()
