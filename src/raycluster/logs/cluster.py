"""From the words of `raycluster logs` to their sources on the hosts, and the cause of a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.untrusted import joined, read_json
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.logs.choose import Chosen, choose, ids, numbered, unknown
from raycluster.logs.read import Source
from raycluster.logs.sources import ProcessSource, ReplicaSource, inside
from raycluster.observe.cluster import observe
from raycluster.observe.liveness import ours
from raycluster.serve.failures import cure
from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import slugs
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState


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


_BAD = ("UNHEALTHY", "DEPLOY_FAILED")
_LONGEST = 600


def causes(spec: ClusterSpec, state: ClusterState, fleet: Fleet, apps: Set[str]) -> tuple[str, ...]:
    """Return a line for each model that does not serve: what is wrong, and where it went wrong.

    `apps` are the applications that are meant; "" among them is all.
    """
    bad = [a for a in state.apps or () if _wrong(a) and apps & {"", a.name}]
    if not bad:
        return ()
    models = {slug: name for name, slug in slugs([m.name for m in spec.models]).items()}
    said = _said(spec, state, fleet)
    return tuple(_line(a, models.get(a.name, a.name), said.get(a.name)) for a in bad)


def _wrong(app: App) -> bool:
    return app.status in _BAD or (app.status == "DEPLOYING" and "raycluster root" in app.message)


def _line(app: App, model: str, last: tuple[str, Mapping[str, Any]] | None) -> str:
    state = app.status.lower().replace("_", " ")
    cause = root_cause(app.message) if app.message else ""
    where = ""
    if last:
        host, told = last
        replica = f"replica {told['replica']}, " if told["replica"] else ""
        where = f" ({replica}process {told['pid']} on {host})"
        cause = cause or told["cause"]
    step = cure(cause)
    line = f"{model}: {state}: {(cause or 'Serve gives no reason')[:_LONGEST]}{where}"
    return f"{line}\n  next: {step}" if step else line


def _said(
    spec: ClusterSpec, state: ClusterState, fleet: Fleet
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return, by application, the replica that last said why it cannot start, and its host."""
    running = [h.name for h in spec.hosts if state.runs(h)]
    last: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for host, found in fleet.each(running, _ask).items():
        for told in found if not isinstance(found, RayclusterError) else ():
            before = last.get(told["app"])
            if before is None or told["at"] > before[1]["at"]:
                last[told["app"]] = host, told
    return last


def _ask(connected: Connected) -> Sequence[Mapping[str, Any]]:
    with closing(inside(connected, {"causes": True})) as stream:
        said = (chunk for channel, chunk in stream if channel == "stdout")
        text = joined(said, "the log reader", connected.host.name)
    told = read_json(text or b"[]", "the log reader", connected.host.name)
    return [
        {
            **{name: each[name].text(2000) for name in ("app", "replica", "cause")},
            "pid": each["pid"].whole() or 0,
            "at": each["at"].number() or 0,
        }
        for each in told
    ]
