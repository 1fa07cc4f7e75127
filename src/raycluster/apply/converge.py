"""`up` and `plan`: one step after the other, from what is there to what the spec says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from raycluster.apply.applications import deploy, plan_deploy, recover, wanted_app
from raycluster.apply.context import ApplyContext, record, wiring
from raycluster.apply.distribution.environments import make_environments
from raycluster.apply.distribution.models import bring
from raycluster.apply.engine_probe.ask import check_environments
from raycluster.apply.entry import locked, observed, placed, reach, token_of
from raycluster.apply.look_ahead import look_ahead
from raycluster.apply.node_checks import (
    check_nodes_gpus,
    facts_of_starts,
    refusals,
    refuse_by_facts,
    refuse_versions,
)
from raycluster.apply.node_waits import wait_for_nodes
from raycluster.apply.nodes import apply_nodes, refresh
from raycluster.apply.preconditions.connectivity import refuse_strangers
from raycluster.apply.preconditions.host_requirements import refuse_unfit
from raycluster.apply.preconditions.shared_folders import check_folders
from raycluster.apply.smoke_test import Proof, prove
from raycluster.core.errors import HostError, RayclusterError, apart, raise_together
from raycluster.core.events import Event, Listener
from raycluster.core.interfaces import Secret
from raycluster.hosts.fleet import Fleet
from raycluster.observe.cluster import observe
from raycluster.plan.actions import APP, EVERYTHING, Action, Deploy, Only, Start
from raycluster.plan.forecast.fits import Problem
from raycluster.plan.forecast.whole import Forecast, at_rest, refuse
from raycluster.plan.planner import plan_nodes, stranded, unread
from raycluster.plan.preconditions import check_up, folders_to_compare
from raycluster.services.grafana import GRAFANA, READ_PASSWORD
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState
from raycluster.state.images import OtherImage, others, started_from


@dataclass(frozen=True)
class Outcome:
    """What a run of `up` did, and the completions that prove that the cluster serves.

    `grafana_password` is there when this run was the one that brought Grafana; `unclean` says why
    hosts that left the cluster still have something of it, `doubts` are what the run had to do
    without. `seconds` is what each step took, by its title.
    """

    actions: tuple[Action, ...]
    proofs: tuple[Proof, ...]
    grafana_password: Secret | None = None
    unclean: tuple[RayclusterError, ...] = ()
    doubts: tuple[RayclusterError, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What one run of `up` knows so far: each step takes it, and returns it with more."""

    work: ApplyContext
    state: ClusterState
    only: Only
    verify: bool
    actions: tuple[Action, ...] = ()
    deploys: Deploy | None = None
    password: Secret | None = None
    unclean: tuple[RayclusterError, ...] = ()
    proofs: tuple[Proof, ...] = ()

    @property
    def starts(self) -> bool:
        """Whether a process is to be started."""
        return any(isinstance(action, Start) for action in self.actions)


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
    reach(spec, fleet, only)
    with locked(spec, fleet, command, listen):
        state = observed(spec, fleet, only)
        if only == APP:
            check_up(spec, state)
        spec, notes = placed(spec, fleet, state, only)
        work = ApplyContext(spec, fleet, token_of(state), secrets, listen)
        doubts = unread(state)
        _note(listen, (*doubts, *stranded(spec, state), *others(started_from(spec, state)), *notes))
        run, seconds = Run(work, state, only, verify), {}
        for step in NODE_STEPS if not only.app else (*NODE_STEPS, *APP_STEPS):
            began = time.monotonic()
            run = step.do(run)
            seconds[step.title] = round(time.monotonic() - began, 3)
    actions = (*run.actions, run.deploys) if run.deploys else run.actions
    return Outcome(actions, run.proofs, run.password, run.unclean, doubts, seconds)


def preview(
    spec: ClusterSpec, fleet: Fleet, secrets: Secrets, only: Only = EVERYTHING
) -> tuple[tuple[Action, ...], Forecast]:
    """Return what `up` would do now, and what that needs and costs; changes nothing.

    Raises what keeps hosts from being seen.
    """
    state = observed(spec, fleet, only)
    spec, notes = placed(spec, fleet, state, only)
    work = ApplyContext(spec, fleet, token_of(state), secrets, lambda _: None)
    run = plan(Run(work, state, only, verify=False))
    change = plan_deploy(work, state) if only.app else None
    actions = (*run.actions, change) if change else run.actions
    facts = facts_of_starts(work, run.actions)
    forecasts: list[Forecast] = []

    def ahead() -> None:
        if any(isinstance(action, Start | Deploy) for action in actions):
            forecasts.append(look_ahead(work, state, actions, models=only.app))
        else:
            forecasts.append(at_rest(spec, state, actions))

    raise_together(
        refusals(
            (
                lambda: check_folders(spec, fleet, folders_to_compare(state, run.actions)),
                ahead,
                lambda: refuse_versions(work, state, run.actions, facts),
            )
        )
    )
    [found] = forecasts
    told = (*unread(state), *stranded(spec, state))
    more = [Problem(error.where, error.what, error.hint) for error in told]
    more += [Problem(o.where, o.what, o.hint) for o in others(started_from(spec, state))]
    return actions, replace(found, warnings=(*found.warnings, *more, *notes))


def plan(run: Run) -> Run:
    """Decide what has to change on the nodes."""
    work, state = run.work, run.state
    return replace(run, actions=plan_nodes(work.spec, state, wiring(work, state), run.only))


def check(run: Run) -> Run:
    """Refuse hosts that cannot do what they are asked for, before anything changes.

    One error says all that is wrong.
    """
    work, state, actions = run.work, run.state, run.actions
    seen = {name: host.address for name, host in state.hosts.items() if not host.problem}
    facts = facts_of_starts(work, actions)
    wrong = refusals(
        (
            lambda: check_folders(work.spec, work.fleet, folders_to_compare(state, actions)),
            lambda: refuse_unfit(work, actions),
            lambda: refuse_by_facts(work, state, actions, facts),
            lambda: refuse_strangers(work, actions, seen),
        )
    )
    forecasts: list[Forecast] = []
    looks: list[Callable[[], object]] = [lambda: refuse_versions(work, state, actions, facts)]
    if run.starts and run.only.app:
        looks.append(lambda: forecasts.append(look_ahead(work, state, actions)))
    # a host that is refused may have nothing to look into: that is no cause of its own
    refused = {each.where for each in apart(wrong)}
    wrong += [each for each in apart(refusals(looks)) if each.where not in refused]
    wrong += refusals(partial(refuse, each, state.hosts) for each in forecasts)
    work.fleet.check()
    raise_together(wrong)
    _tell(work, forecasts)
    return run


def change_nodes(run: Run) -> Run:
    """Prepare hosts, start, reload and remove processes, and wait until Ray counts every host."""
    work, state = run.work, run.state
    for action in run.actions:
        work.listen(Event(action.host, action.describe().partition(": ")[2]))
    if unread(state) and not run.actions:
        record(work, state, ())
    unclean: tuple[RayclusterError, ...] = ()
    if run.actions:
        unclean = apply_nodes(work, state, run.actions, run.only)
    elif late := [h for h in work.spec.hosts if run.only.nodes(h) and state.node(h) is None]:
        wait_for_nodes(work, late)
    else:
        return run
    return replace(run, state=observe(work.spec, work.fleet), unclean=unclean)


def refresh_nodes(run: Run) -> Run:
    """Write what running nodes read anew, and read the password of a Grafana that is new."""
    refresh(run.work, wiring(run.work, run.state), run.only)
    return replace(run, password=_grafana_password(run.work.fleet, run.actions))


def plan_app(run: Run) -> Run:
    """Decide what has to change in the app, given the nodes that are there now."""
    work, state = run.work, run.state
    if work.spec.models:
        check_nodes_gpus(work, state)
    change = plan_deploy(work, state)
    if change and not run.starts:
        _refuse_what_cannot_work(work, state, (change,))
    return replace(run, deploys=change)


def probe_engines(run: Run) -> Run:
    """Look from inside of nodes whether their environment runs the engine."""
    hosts = {h.name for h in run.work.spec.hosts} if run.deploys else _started(run)
    check_environments(run.work, run.state, hosts)
    return run


def change_app(run: Run) -> Run:
    """Bring code, environments and models to the nodes, and make the app that of the spec."""
    work, state = run.work, run.state
    if run.deploys:
        deploy(work, run.deploys, state, verify=run.verify)
        return run
    if work.spec.models and (_started(run) or run.verify):  # replicas may come to a new node
        wanted = wanted_app(work, state)
        make_environments(work, state, wanted)
        bring(work, state, wanted, verify=run.verify)
    recover(work, state)
    return run


def smoke_test(run: Run) -> Run:
    """Ask each model for a completion."""
    return replace(run, proofs=prove(run.work))


@dataclass(frozen=True)
class Step:
    """A step of `up`: its title, and what it does."""

    title: str
    do: Callable[[Run], Run]


NODE_STEPS = (
    Step("plan", plan),
    Step("check", check),
    Step("change nodes", change_nodes),
    Step("refresh nodes", refresh_nodes),
)
APP_STEPS = (
    Step("plan the app", plan_app),
    Step("probe engines", probe_engines),
    Step("change the app", change_app),
    Step("smoke test", smoke_test),
)


def _started(run: Run) -> set[str]:
    """Return the hosts on which a node of Ray was started."""
    nodes = (a for a in run.actions if isinstance(a, Start) and a.process.role in RAY_ROLES)
    return {action.host for action in nodes}


def _note(listen: Listener, errors: Iterable[RayclusterError | OtherImage | Problem]) -> None:
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


def _refuse_what_cannot_work(
    work: ApplyContext, state: ClusterState, actions: Sequence[Action]
) -> None:
    """Raise SpecError or HostError where models cannot fit on the hosts, before any is started.

    What can be done better is told.
    """
    forecast = look_ahead(work, state, actions)
    refuse(forecast, state.hosts)
    _tell(work, [forecast])


def _tell(work: ApplyContext, forecasts: Iterable[Forecast]) -> None:
    for note in (note for forecast in forecasts for note in forecast.notes):
        work.listen(Event(note.where, f"{note.what}; {note.hint}", "note"))
