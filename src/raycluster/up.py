"""`up`, `plan` and `down`: observe, plan, apply, and look again."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from raycluster.apply import apply_nodes, check_nodes_gpus, refresh, wait_for_nodes
from raycluster.connect import Connected, Fleet, all_or_raise
from raycluster.contracts import ImageStore, Secret
from raycluster.deploy import Proof, deploy, plan_deploy, prove, recover, wanted_app
from raycluster.environments import make_environments
from raycluster.errors import HostError, NewerRecordError, PortInUseError, RayclusterError
from raycluster.events import Event, Listener
from raycluster.folders import check_folders
from raycluster.forecast.fits import Problem
from raycluster.forecast.whole import Forecast, at_rest, refuse
from raycluster.guard import take_away
from raycluster.leave import recognise
from raycluster.lock import holding
from raycluster.needs import refuse_unfit
from raycluster.neighbours import refuse_strangers
from raycluster.observe import machine, observe
from raycluster.plan import (
    EVERYTHING,
    Action,
    Deploy,
    Only,
    Start,
    check_machines,
    check_owner,
    check_up,
    folders_to_compare,
    moved_hosts,
    plan_nodes,
    removed_hosts,
    stranded,
    unread,
)
from raycluster.probe.ask import check_environments
from raycluster.services.grafana import GRAFANA, READ_PASSWORD
from raycluster.services.ray_node import RAY_ROLES
from raycluster.services.wiring import Secrets
from raycluster.spec import ClusterSpec
from raycluster.spool import clear_spool
from raycluster.state import ClusterState
from raycluster.survey import look_ahead
from raycluster.weights import bring
from raycluster.work import Work, record, wiring


@dataclass(frozen=True)
class Outcome:
    """What a run of `up` did, and the completions that prove that the cluster serves.

    `grafana_password` is there when this run was the one that brought Grafana; `unclean` says why
    hosts that left the cluster still have something of it, `doubts` are what the run had to do
    without.
    """

    actions: tuple[Action, ...]
    proofs: tuple[Proof, ...]
    grafana_password: Secret | None = None
    unclean: tuple[RayclusterError, ...] = ()
    doubts: tuple[RayclusterError, ...] = ()


def up(
    spec: ClusterSpec,
    fleet: Fleet,
    secrets: Secrets,
    listen: Listener,
    only: Only = EVERYTHING,
    *,
    verify: bool = False,
    command: str = "raycluster up",
) -> Outcome:
    """Converge the hosts and the app on the spec; end after a real completion came back.

    `verify` reads the models' files on all nodes again; `command` is what another run is told of
    this one.
    """
    _reach(spec, fleet, only)
    with _lock(spec, fleet, command, listen):
        return _up(spec, fleet, secrets, listen, only, verify=verify)


@contextmanager
def _lock(spec: ClusterSpec, fleet: Fleet, command: str, listen: Listener) -> Iterator[None]:
    """Hold the cluster's lock over a connection that nothing else uses."""
    name = spec.cluster.name
    tell = lambda text: listen(Event(name, text))  # noqa: E731
    runtime = fleet[spec.hosts[0].name].runtime
    docker = runtime.socket_path() if isinstance(runtime, ImageStore) else ""
    with (
        closing(fleet.beside(spec.hosts[0].name)) as own,
        holding(own, name, command, tell, docker) as lease,
        fleet.under(lease),
    ):
        yield


def _up(
    spec: ClusterSpec,
    fleet: Fleet,
    secrets: Secrets,
    listen: Listener,
    only: Only,
    *,
    verify: bool,
) -> Outcome:
    state = _seen(spec, fleet, only)
    if only.part in ("app", "gateway"):
        check_up(spec, state)
    work = Work(spec, fleet, state.token or _new_token(), secrets, listen)
    doubts = unread(state)
    _tell(listen, (*doubts, *stranded(spec, state)))
    actions = plan_nodes(spec, state, wiring(work, state), only)
    starts = any(isinstance(action, Start) for action in actions)
    check_folders(spec, fleet, folders_to_compare(state, actions))
    refuse_unfit(work, actions)
    seen = {name: host.address for name, host in state.hosts.items() if not host.problem}
    refuse_strangers(work, actions, seen)
    if starts and only.app:
        _refuse_what_cannot_work(work, state, actions)
    unclean: tuple[RayclusterError, ...] = ()
    for action in actions:
        listen(Event(action.host, action.describe().partition(": ")[2]))
    if doubts and not actions:
        record(work, state, ())
    if actions:
        unclean = apply_nodes(work, state, actions, only)
        state = observe(spec, fleet)
    elif late := [
        h for h in spec.hosts if only.nodes(h) and only.role(h.role) and state.node(h) is None
    ]:
        wait_for_nodes(work, late)
        state = observe(spec, fleet)
    refresh(work, wiring(work, state), only)
    password = _grafana_password(fleet, actions)
    if not only.app:
        return Outcome(actions, (), password, unclean, doubts)
    if spec.models:
        check_nodes_gpus(work, state)
    change = plan_deploy(work, state)
    started = {a.host for a in actions if isinstance(a, Start) and a.process.role in RAY_ROLES}
    if change and not starts:
        _refuse_what_cannot_work(work, state, (change,))
    check_environments(work, state, {h.name for h in spec.hosts} if change else started)
    if change:
        deploy(work, change, state, verify=verify)
        actions = (*actions, change)
    else:
        if spec.models and (started or verify):  # replicas may come to a node that joined
            wanted = wanted_app(work, state)
            make_environments(work, state, wanted)
            bring(work, state, wanted, verify=verify)
        recover(work, state)
    return Outcome(actions, prove(work), password, unclean, doubts)


def _tell(listen: Listener, errors: Iterable[RayclusterError]) -> None:
    for error in errors:
        listen(Event(error.where, f"{error.what}; {error.hint}", "note"))


def _grafana_password(fleet: Fleet, actions: tuple[Action, ...]) -> Secret | None:
    """Return the password that a Grafana of this run made for itself, if there is one."""
    for action in actions:
        if isinstance(action, Start) and action.process.role == GRAFANA and not action.replaces:
            try:
                done = fleet[action.host].runtime.inside(GRAFANA).run(READ_PASSWORD)
            except HostError:
                return None  # it stopped meanwhile; the cluster serves without it
            return Secret(done.text) if done.exit_code == 0 and done.text else None
    return None


def _refuse_what_cannot_work(work: Work, state: ClusterState, actions: Sequence[Action]) -> None:
    """Raise SpecError or HostError where models cannot fit on the hosts, before any is started.

    What can be done better is told.
    """
    forecast = look_ahead(work, state, actions)
    refuse(forecast, state.hosts)
    for note in forecast.notes:
        work.listen(Event(note.where, f"{note.what}; {note.hint}", "note"))


def preview(
    spec: ClusterSpec, fleet: Fleet, secrets: Secrets, only: Only = EVERYTHING
) -> tuple[tuple[Action, ...], Forecast]:
    """Return what `up` would do now, and what that needs and costs; changes nothing.

    Raises what keeps hosts from being seen.
    """
    state = _seen(spec, fleet, only)
    work = Work(spec, fleet, state.token or _new_token(), secrets, lambda _: None)
    actions = plan_nodes(spec, state, wiring(work, state), only)
    check_folders(spec, fleet, folders_to_compare(state, actions))
    change = plan_deploy(work, state) if only.app else None
    if change:
        actions = (*actions, change)
    if any(isinstance(action, Start | Deploy) for action in actions):
        found = look_ahead(work, state, actions, models=only.app)
    else:
        found = at_rest(spec, state, actions)
    told = (*unread(state), *stranded(spec, state))
    more = (Problem(error.where, error.what, error.hint) for error in told)
    return actions, replace(found, warnings=(*found.warnings, *more))


def _reach(spec: ClusterSpec, fleet: Fleet, only: Only) -> None:
    """Connect; raise one error for all hosts that this run needs and cannot reach."""
    reached = fleet.reach(spec.hosts, lambda connected: connected.address)
    _refuse(spec, only, {n: r for n, r in reached.items() if isinstance(r, RayclusterError)})


def _refuse(spec: ClusterSpec, only: Only, problems: Mapping[str, RayclusterError | None]) -> None:
    needed = [h.name for h in spec.hosts if only.nodes(h) or h.role == "head"]
    errors = [problem for name in needed if (problem := problems.get(name))]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(str(error) for error in errors)
        raise HostError(f"{len(errors)} hosts cannot be used\n{lines}")


def _seen(spec: ClusterSpec, fleet: Fleet, only: Only) -> ClusterState:
    """Observe; raise one error for all hosts that this run needs and cannot see."""
    state = observe(spec, fleet)
    _refuse(spec, only, {name: host.problem for name, host in state.hosts.items()})
    check_owner(spec, state)
    if isinstance(state.unread, NewerRecordError):  # it is not overwritten
        raise state.unread
    if isinstance(state.head_problem, PortInUseError):
        raise state.head_problem
    seen = [name for name, host in state.hosts.items() if not host.problem]
    if len(seen) > 1:
        check_machines(all_or_raise(fleet.each(seen, machine)))
    return state


def _new_token() -> Secret:
    return Secret(randomness.token_hex(32))


def down(
    spec: ClusterSpec, fleet: Fleet, listen: Listener, *, purge: bool = False
) -> tuple[str, ...]:
    """Remove everything of this cluster from its hosts, those that left the spec too.

    Returns what was removed, as `host: thing`. A host that cannot be reached costs the others
    nothing: they are cleaned, and then an error names it.
    """
    head = fleet.reach(spec.hosts[:1], lambda c: c.transport)[spec.hosts[0].name]
    if isinstance(head, RayclusterError):
        return _down(spec, fleet, listen, purge=purge)  # there is nobody to ask for the lock
    with _lock(spec, fleet, "raycluster down", listen):
        return _down(spec, fleet, listen, purge=purge)


def _down(spec: ClusterSpec, fleet: Fleet, listen: Listener, *, purge: bool) -> tuple[str, ...]:
    state = observe(spec, fleet)
    check_owner(spec, state)
    former = (*removed_hosts(spec, state), *moved_hosts(spec, state))
    # before anything is cleaned: a host of the spec may be among them by another address
    fleet.check()
    known = recognise(fleet, former, state.token) if state.token else {}
    hosts = [*spec.hosts, *(f.host for f in former if f.host and known.get(f.name) is True)]
    fleet.check()
    results = fleet.reach(hosts, lambda c: _clean(spec, c, listen, purge=purge))
    problems = [r for r in (*known.values(), *results.values()) if isinstance(r, RayclusterError)]
    problems += stranded(spec, state)
    removed = tuple(
        f"{name}: {thing}"
        for name, things in results.items()
        if isinstance(things, tuple)
        for thing in things
    )
    lines = [f"{len(problems)} hosts could not be cleaned", *map(str, problems)] if problems else []
    lines += map(str, unread(state))
    if lines:
        raise HostError("\n".join(lines))
    return removed


def _clean(
    spec: ClusterSpec, connected: Connected, listen: Listener, *, purge: bool
) -> tuple[str, ...]:
    removed = connected.runtime.remove(None, purge=purge)
    removed += clear_spool(connected, spec.distribution.folder, spec.cluster.name)
    if take_away(connected, spec.cluster.name):
        removed = (*removed, "firewall rules")
    text = f"removed {', '.join(removed)}" if removed else "nothing of this cluster is here"
    listen(Event(connected.host.name, text, "done"))
    return removed
