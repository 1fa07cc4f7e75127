"""Whether one more replica finds its place on a node; pure, and cautious.

Ray's scheduler counts CPUs and GPUs. Memory it does not know: not a host's, which on CPU hosts
holds the model, nor a GPU's, of which every engine takes its share at start. A replica too many
would wait for ever, or end others by using up the memory. So a place counts only where it is free
by all that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raycluster.core.cgroups import Limits
from raycluster.state.cluster import App, RayNode


@dataclass(frozen=True)
class Memory:
    """A host's memory in bytes."""

    used: float
    available: float


def limited(memory: Memory, limits: Limits | None) -> Memory:
    """Return a node's memory as far as its host's control groups leave it, of which Ray is unaware.

    Ray tells that of the whole machine, but for limits of a container's own group.
    """
    if limits is None or not limits.of_memory:
        return memory
    if limits.memory_bytes >= memory.used + memory.available:
        return memory
    used = memory.used if limits.used_bytes is None else limits.used_bytes
    return Memory(used, max(0.0, limits.memory_bytes - used))


@dataclass(frozen=True)
class Demand:
    """What one replica needs of one node, of any or of one with one of the `labels`.

    `other` says that it needs more than is counted here.
    """

    cpus: float
    gpus: float
    other: bool = False
    labels: frozenset[str] = frozenset()

    @property
    def part_of_gpu(self) -> bool:
        """True when it shares a GPU; Ray puts it beside another, whatever memory is left there."""
        return self.gpus != int(self.gpus)


class FreeCapacity:
    """What is free on live nodes; `occupy` and `reserve` make it less."""

    def __init__(self, nodes: Iterable[RayNode], memory: Mapping[str, Memory]) -> None:
        alive = [n for n in nodes if n.alive]
        self._cpus = {n.node_id: n.cpus for n in alive}
        self._gpus = {n.node_id: n.gpus for n in alive}
        self._labels = {n.node_id: n.label for n in alive}
        told = [n.node_id for n in alive if n.node_id in memory]
        self._memory = {node: memory[node].available for node in told}
        self._known = True

    @property
    def nodes(self) -> int:
        """The number of live nodes."""
        return len(self._cpus)

    def occupy(self, demand: Demand, node: str) -> None:
        """Count a replica that is on a node, or that waits for one."""
        self._known = self._known and not demand.other
        if node in self._cpus:
            self._cpus[node] -= demand.cpus
            self._gpus[node] -= demand.gpus
        else:
            self._place(demand, 0)

    def reserve(self, demand: Demand, memory: float) -> str:
        """Find one more replica its place; return why there is none, or ""."""
        if demand.other or not self._known:
            return "cannot tell whether there is capacity for one more replica"
        if demand.part_of_gpu:
            return "GPUs shared by replicas may lack memory for one more"
        return self._place(demand, memory)

    def _place(self, demand: Demand, memory: float) -> str:
        labels = demand.labels
        places = [node for node in self._cpus if not labels or self._labels[node] in labels]
        if not places:
            return "none of its hosts is there for one more replica"
        for what, free, need in (
            ("no free GPU", self._gpus, demand.gpus),
            ("no free CPU", self._cpus, demand.cpus),
            ("not enough free memory", self._memory, memory),
        ):
            places = [n for n in places if not need or free.get(n, 0) >= need]
            if not places:
                return f"{what} for one more replica"
        self._cpus[places[0]] -= demand.cpus
        self._gpus[places[0]] -= demand.gpus
        if places[0] in self._memory:
            self._memory[places[0]] -= memory
        return ""


def memory_of_a_replica(memory: Mapping[str, Memory], apps: Iterable[App]) -> float:
    """Return at least what any replica uses: all that is used on its node, shared by those there.

    The system's own use is in it, so that it is more than a replica's. Infinite where nothing is
    known.
    """
    counts: dict[str, int] = {}
    for app in apps:
        for replica in app.replicas:
            counts[replica.node_id] = counts.get(replica.node_id, 0) + 1
    told = [memory[node].used / count for node, count in counts.items() if node in memory]
    return max(told, default=math.inf if counts else 0.0)
