"""From the words of `raycluster logs` to the sources that they stand for, on the hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycluster.core.errors import HostError, RayclusterError
from raycluster.hosts.fleet import Fleet
from raycluster.logs.choose import Chosen, choose, ids, numbered, unknown
from raycluster.logs.read import Source
from raycluster.logs.sources import ProcessSource, ReplicaSource
from raycluster.observe.cluster import observe
from raycluster.observe.ownership import ours
from raycluster.serve.settings import slugs
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState


@dataclass(frozen=True)
class LogSelection:
    """What should be read; `state` was seen for it, where replicas are meant."""

    chosen: Chosen
    sources: tuple[Source, ...]
    state: ClusterState | None = None

    @property
    def mixed(self) -> bool:
        """True where lines of different sources may stand among each other."""
        return len(self.sources) > 1 or bool(self.chosen.replicas)

    @property
    def guess(self) -> str:
        """A word that no running replica has as its id: an ended one's, or a mistake; else ""."""
        ids = [r.replica_id for a in (self.state and self.state.apps) or () for r in a.replicas]
        words = (w.replica for w in self.chosen.replicas if not w.app and w.replica)
        return next((w for w in words if not any(i.startswith(w) for i in ids)), "")


def find(
    spec: ClusterSpec, fleet: Fleet, words: Sequence[str], tell: Callable[[str], None]
) -> LogSelection:
    """Return the sources that the words stand for; `tell` takes what keeps one from being read.

    Raises UsageError, and HostError where nothing of what is meant can be read.
    """
    chosen = choose(spec, words)
    state = observe(spec, fleet) if chosen.replicas else None
    reached = fleet.reach(
        {h.name: h for h, _ in chosen.processes}.values(), lambda c: ours(spec, c)
    )
    problems = {name: r for name, r in reached.items() if isinstance(r, RayclusterError)}
    sources: list[Source] = [
        ProcessSource(one, role)
        for host, role in chosen.processes
        if not isinstance(one := reached[host.name], RayclusterError)
    ]
    if state:
        problems |= {name: p for name, host in state.hosts.items() if (p := host.problem)}
        sources += _replicas(spec, fleet, state, chosen)
    found = LogSelection(chosen, tuple(sources), state)
    if not sources and found.guess:
        raise next(iter(problems.values()), unknown(spec, found.guess))
    if not sources:
        nothing = HostError("no node is running", where=spec.cluster.name, hint="raycluster up")
        raise next(iter(problems.values()), nothing)
    for name, problem in problems.items():
        tell(f"{name}: {problem.what}")
    return found


def _replicas(spec: ClusterSpec, fleet: Fleet, state: ClusterState, chosen: Chosen) -> list[Source]:
    """Return a source for each node and each kind of replica that is meant."""
    models = {slug: name for name, slug in slugs([m.name for m in spec.models]).items()}
    apps = state.apps or ()
    running = [host for host in spec.hosts if state.runs(host)]
    wanted = [numbered(spec, state, each) for each in chosen.replicas] if running else []
    return [
        ReplicaSource(fleet[host.name], each, models, ids(apps, node.address) if node else {})
        for each in wanted
        for host in running
        for node in [state.node(host)]
    ]
