"""Brings the app to the cluster: code and secrets to the nodes, applications to Serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from raycluster.apply.context import ApplyContext, ray_api
from raycluster.apply.distribution.environments import make_environments
from raycluster.apply.distribution.models import bring
from raycluster.core.errors import AppError, HostError, RayclusterError
from raycluster.core.events import Event, Listener
from raycluster.core.wait import raise_lasting, wait_for
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.http import http_client
from raycluster.hosts.ray_api import RayApi
from raycluster.hosts.remote_files import push_files
from raycluster.observe.facts import read_limits
from raycluster.observe.liveness import watched
from raycluster.plan.actions import Deploy
from raycluster.plan.planner import plan_app
from raycluster.plan.preconditions import check_gpus
from raycluster.serve.failures import cure
from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import DRAIN_S, ENGINE_HEADER, WAITING_ROUTE
from raycluster.services.app import app
from raycluster.services.node_files import app_fingerprint, code_files, haproxy_file, secret_files
from raycluster.services.ray_node import HEAD
from raycluster.state.cluster import App, ClusterState
from raycluster.state.free_capacity import Memory, limited


def plan_deploy(work: ApplyContext, state: ClusterState) -> Deploy | None:
    """Return the deployment that the spec's models need, given the nodes that are there."""
    if not work.spec.models and not state.apps:
        return None
    wanted = wanted_app(work, state)
    change = plan_app(wanted, state.apps, state.nodes or ())
    if change is None or not state.apps:
        return change
    with ray_api(work) as api:
        memory = api.memory()
    return plan_app(wanted, state.apps, state.nodes or (), _limited(work, state, memory))


def _limited(
    work: ApplyContext, state: ClusterState, memory: Mapping[str, Memory]
) -> Mapping[str, Memory]:
    """Return the nodes' memory as far as their hosts leave it to them, by node id."""
    nodes = {h.name: n.node_id for h in work.spec.hosts if (n := state.node(h))}
    told = work.fleet.each([name for name, node in nodes.items() if node in memory], read_limits)
    limits = {nodes[n]: seen for n, seen in told.items() if not isinstance(seen, RayclusterError)}
    return {node: limited(each, limits.get(node)) for node, each in memory.items()}


def wanted_app(work: ApplyContext, state: ClusterState) -> Mapping[str, Any]:
    """Return the body for Serve that the spec's models need, given the nodes that are there."""
    if state.nodes is None and state.head_problem:
        raise state.head_problem  # without the nodes, GPUs would seem to be gone
    nodes = {h.name: node for h in work.spec.hosts if (node := state.node(h))}
    gpus = {name: node.gpus for name, node in nodes.items()}
    if len(gpus) == len(work.spec.hosts):
        check_gpus(work.spec, gpus)
    fingerprint = app_fingerprint(work.token, work.secrets.replicas)
    return app(work.spec, gpus=gpus, fingerprint=fingerprint)


def deploy(
    work: ApplyContext, action: Deploy, state: ClusterState, *, verify: bool = False
) -> None:
    """Make the applications those of the spec, and wait until they run. Raises AppError.

    The models are on the nodes before the first replica starts; `verify` reads them again.
    """
    files = {**secret_files(work.token, work.secrets.replicas), **code_files()}
    push(work, state, files)
    make_environments(work, state, action.body)
    bring(work, state, action.body, verify=verify)
    work.listen(Event("app", "deploying: " + "; ".join(action.reasons)))
    for cost in action.costs:
        work.listen(Event("app", cost, "note"))
    transport = work.fleet[work.head.name].transport
    with ray_api(work) as api, http_client(transport, work.spec.ports.api, timeout=5) as http:
        alive = watched(work.fleet[work.head.name], HEAD)
        cluster = RolloutContext(
            api, http, lambda files: _write(work, state, files), work.listen, alive
        )
        roll_out(cluster, action, work.spec.cluster.app_timeout)


@dataclass(frozen=True)
class RolloutContext:
    """What a rollout works with: Ray's API, Serve's HTTP port, the nodes' files, a listener.

    `alive` raises HostError where the head is away for good.
    """

    api: RayApi
    http: httpx.Client
    write: Callable[[Mapping[str, bytes]], None]
    listen: Listener
    alive: Callable[[], None] = lambda: None


def roll_out(cluster: RolloutContext, action: Deploy, timeout: float) -> None:
    """Take the steps of a rollout, each until all of it runs. Raises AppError.

    `timeout` is for the start of one replica; each may wait for one before it to drain.
    """
    steps = action.rollout.steps
    limit = action.rollout.turns * (timeout + (DRAIN_S if action.costs else 0))
    for before, step in zip((action.rollout.before, *steps), steps, strict=False):
        # Between two steps HAProxy knows the ways of both; it reads them whenever replicas change.
        cluster.write(haproxy_file(*((before, step) if len(steps) > 1 else (step,))))
        _when_ready(cluster.api, step, cluster.alive)
        names = {a["name"] for a in step["applications"]}
        _wait_until_running(cluster.api, names, cluster.listen, limit, alive=cluster.alive)
        if any(a["route_prefix"] == WAITING_ROUTE for a in step["applications"]):
            _wait_for_router(cluster.http)
    cluster.write(haproxy_file(steps[-1]))


def _wait_for_router(http: httpx.Client) -> None:
    """Return when a new router can be reached; until then its route leads to a model."""

    def answers() -> bool | None:
        try:
            answer = http.get(f"{WAITING_ROUTE}/health")
        except httpx.HTTPError as error:
            raise_lasting(error)
            return None
        return True if answer.is_success and ENGINE_HEADER not in answer.headers else None

    if wait_for(answers, timeout=60) is None:
        raise AppError("does not respond", where="router", hint="raycluster logs app")


def push(work: ApplyContext, state: ClusterState, files: Mapping[str, bytes]) -> None:
    """Write files to the nodes that run, and say which hosts are left out. Raises HostError."""

    for host in work.spec.hosts:
        if not state.runs(host):
            problem = state.hosts[host.name].problem
            why = problem.what if problem else f"no {host.role} runs there"
            work.listen(Event(host.name, f"cannot deploy to it: {why}", "note"))
    _write(work, state, files)


def _write(work: ApplyContext, state: ClusterState, files: Mapping[str, bytes]) -> None:
    def write(connected: Connected) -> None:
        push_files(connected.runtime.inside(connected.host.role), files)

    work.fleet.check()
    all_or_raise(work.fleet.each((h.name for h in work.spec.hosts if state.runs(h)), write))


def recover(work: ApplyContext, state: ClusterState) -> None:
    """Wait until applications that lost replicas run again. Raises AppError.

    Serve may not have missed them yet: a replica on a node that Ray has given up is lost too.
    """
    lost = frozenset(node.node_id for node in state.nodes or () if not node.alive)
    apps = state.apps or ()
    if apps and not all(_runs(a, lost) for a in apps):
        names = {a.name for a in apps}
        alive = watched(work.fleet[work.head.name], HEAD)
        limit = work.spec.cluster.app_timeout
        with ray_api(work) as api:
            _wait_until_running(api, names, work.listen, limit, lost=lost, alive=alive)


def _runs(app_: App, lost: frozenset[str]) -> bool:
    return app_.running and lost.isdisjoint(r.node_id for r in app_.replicas)


def _when_ready(api: RayApi, body: Mapping[str, Any], alive: Callable[[], None]) -> None:
    """Deploy as soon as the dashboard answers: on a new head that is after its control store."""

    def answers() -> bool | None:
        try:
            api.apps()
        except HostError as error:
            raise_lasting(error)
            alive()
            return None
        return True

    if wait_for(answers, timeout=60) is None:
        api.apps()  # raises what is wrong
    api.deploy(body)


def _wait_until_running(
    api: RayApi,
    names: set[str],
    listen: Listener,
    timeout: float,
    *,
    lost: frozenset[str] = frozenset(),
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Wait until Serve runs these applications; raise AppError with the root cause if one fails.

    None of their replicas is then on a node that is `lost`.
    """
    told: dict[str, str] = {}

    def settled() -> bool | None:
        try:
            apps = {a.name: a for a in api.apps() if a.name in names}
        except HostError as error:
            raise_lasting(error)
            alive()
            return None  # a busy dashboard answers the next time
        for app_ in apps.values():
            if app_.failed:
                raise _failure(app_)
            line = _progress(app_)
            if told.get(app_.name) != line:
                told[app_.name] = line
                listen(Event("app", line, "done" if app_.running else "step"))
        return (
            True if len(apps) == len(names) and all(_runs(a, lost) for a in apps.values()) else None
        )

    if wait_for(settled, timeout=timeout, interval=0.5) is None:
        late = [a for a in api.apps() if a.name in names and not a.running]
        detail = root_cause(late[0].message) if late and late[0].message else "still starting"
        raise AppError(
            f"not serving after {timeout:.0f} s: {detail}",
            where=late[0].name if late else "app",
            hint=cure(detail) or "see raycluster logs app, or raise cluster.app_timeout",
        )


def _progress(app_: App) -> str:
    states: dict[str, int] = {}
    for replica in app_.replicas:
        states[replica.state.lower()] = states.get(replica.state.lower(), 0) + 1
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    return f"{app_.name}: {app_.status.lower()}" + (f" (replicas: {counts})" if counts else "")


def _failure(app_: App) -> AppError:
    before = app_.still_serving
    cause = root_cause(app_.message) or "the replicas fail to start"
    return AppError(
        f"{cause}\n  the new version fails to start; {before}" if before else cause,
        where=app_.name,
        hint=cure(cause) or "see raycluster logs app for the replicas' full output",
    )
