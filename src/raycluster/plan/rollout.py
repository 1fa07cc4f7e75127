"""How running applications get to the wanted ones: in which steps, and what that costs; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.serve.settings import ROUTER, WAITING_ROUTE
from raycluster.state.cluster import App, RayNode
from raycluster.state.free_capacity import Demand, FreeCapacity, Memory, memory_of_a_replica

Body = Mapping[str, Any]

ONE_MORE = 1
"""Percent of an app's replicas; Serve rounds up, so that it is one replica for up to a hundred."""

IN_PLACE = ("name", "route_prefix", "deployments")
"""What may change of an application, beside the actors' options, without new replicas."""


@dataclass(frozen=True)
class Rollout:
    """Bodies for Ray's REST API, to be applied one after another, and what they cost, by app.

    `before` has the applications that run. `turns` is how many replicas start one after another,
    of the app that has most of them.
    """

    steps: tuple[Body, ...]
    costs: Mapping[str, str]
    before: Body = field(default_factory=dict)
    turns: int = 1


def plan_rollout(
    wanted: Body, apps: Iterable[App], nodes: Iterable[RayNode], memory: Mapping[str, Memory]
) -> Rollout:
    """Return how to get from `apps` to `wanted`; `memory` is what nodes have, by node id."""
    running = {a.name: a for a in apps}
    wants = {want["name"]: want for want in wanted["applications"]}
    need = memory_of_a_replica(memory, running.values())
    capacity = FreeCapacity(nodes, memory)
    waits = (
        _fill(capacity, wants, running, need) if capacity.nodes else {}
    )  # before `up` there are none
    costs = {name: f"{why}: its new replicas wait for capacity" for name, why in waits.items()}
    surging: set[str] = set()
    for name, want in wants.items():
        app = running.get(name)
        if name == ROUTER or name in waits or app is None or same(app.config, want):
            continue
        refused = ""
        if restarts(app.config, want) and app.serving >= _count(want, app.alive):
            refused = capacity.reserve(_demand(want), need)
            surging |= set() if refused else {name}
        costs[name] = _cost(app, want, refused)
    final = [_surged(want, surging) for want in wants.values()]
    first = _keep_routes(_hold(final, running) if surging else final, running)
    bodies = [{**wanted, "applications": applications} for applications in (first, final)]
    turns = max((running[name].serving for name in costs if name in running), default=1)
    steps = bodies[1:] if first == final else bodies
    before = {"applications": [{"name": a.name, **a.config} for a in running.values()]}
    return Rollout(tuple(steps), costs, before, max(1, turns))


def same(seen: Body, want: Body) -> bool:
    """Return True when the deployed application is the wanted one, however it was rolled out."""
    exact = want.keys() - {"deployments"}
    return all(seen.get(key) == want[key] for key in exact) and _covers(
        seen.get("deployments", ()), [_settled(d) for d in want.get("deployments", ())]
    )


def _settled(deployment: Body) -> dict[str, Any]:
    ways = ("max_surge_percent", "rolling_update_percentage")
    return {key: value for key, value in deployment.items() if key not in ways}


def _covers(seen: object, wanted: object) -> bool:
    """Return True when `seen` says all that `wanted` says; Serve adds its defaults to what it was
    given."""
    if isinstance(wanted, Mapping):
        return isinstance(seen, Mapping) and all(
            key in seen and _covers(seen[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(seen, list | tuple)
            and len(seen) == len(wanted)
            and all(map(_covers, seen, wanted))
        )
    return bool(seen == wanted)


def restarts(seen: Body, want: Body) -> bool:
    """Return True when Serve replaces the replicas for this change."""
    if any(seen.get(key) != want[key] for key in want.keys() - set(IN_PLACE)):
        return True
    actors = ("ray_actor_options", "placement_group_bundles", "max_replicas_per_node")
    return any(
        not _covers(before.get(key), after.get(key))
        for before, after in zip(
            seen.get("deployments", ()), want.get("deployments", ()), strict=False
        )
        for key in actors
    )


def _fill(
    capacity: FreeCapacity, wants: Mapping[str, Body], running: Mapping[str, App], need: float
) -> dict[str, str]:
    """Take from `capacity` all that runs and stays, grows or is new; return what finds no place.

    Replicas that stop, or that are too many, are not counted: they leave within the time for
    draining.
    """
    for name, app in running.items():
        there = [r for r in app.replicas if r.state != "STOPPING"]
        stay = _count(wants[name], len(there)) if name in wants else 0
        for replica in there[:stay]:
            capacity.occupy(_demand(app.config), replica.node_id)
    waits: dict[str, str] = {}
    for name, want in wants.items():
        here = running[name].alive if name in running else 0
        for _ in range(here, _count(want, here)):
            if why := capacity.reserve(_demand(want), need):
                waits[name] = why
    return waits


def _deployment(application: Body) -> Body:
    return next(iter(application.get("deployments") or ()), {})


def _demand(application: Body) -> Demand:
    """Return what one replica needs. The router has no settings, and needs nothing."""
    deployment = _deployment(application)
    options = deployment.get("ray_actor_options") or {}
    other = bool(deployment.get("placement_group_bundles")) or bool(options.get("resources"))
    hosts = ((application.get("args") or {}).get("model") or {}).get("hosts") or {}
    cpus, gpus = options.get("num_cpus") or 0, options.get("num_gpus") or 0
    return Demand(cpus, gpus, other=other, labels=frozenset(hosts.values()))


def _count(want: Body, here: int) -> int:
    """Return how many replicas an application should have, given those that it has."""
    deployment = _deployment(want)
    scaling = deployment.get("autoscaling_config")
    if not scaling:
        return int(deployment.get("num_replicas") or 1)
    return int(min(max(here, scaling["min_replicas"]), scaling["max_replicas"]))


def _cost(app: App, want: Body, refused: str) -> str:
    if not restarts(app.config, want):
        return "changes in place: no interruption"
    if app.serving == 0:
        return "no replica is serving now: no interruption"
    if not refused:
        return "starts each new replica before stopping an old one: no interruption"
    if app.serving == 1:
        return f"{refused}: the model is unavailable while its new replica starts"
    share = 100 / app.serving
    return (
        f"{refused}: one of {app.serving} replicas at a time is "
        f"unavailable, and capacity drops by {share:.0f}%"
    )


def _surged(want: Body, surging: set[str]) -> Body:
    if not want.get("deployments"):
        return want
    percent = ONE_MORE if want["name"] in surging else 0
    deployments = [{**d, "max_surge_percent": percent} for d in want["deployments"]]
    return {**want, "deployments": deployments}


def _hold(applications: Iterable[Body], running: Mapping[str, App]) -> list[Body]:
    """Keep autoscaling from growing into the capacity that a rollout counts on."""
    held = []
    for application in applications:
        scaling = _deployment(application).get("autoscaling_config")
        if scaling:
            app = running.get(application["name"])
            most = max(1, _count(application, app.alive if app else 0))
            first = {**scaling, "max_replicas": most}
            if scaling.get("initial_replicas"):
                first["initial_replicas"] = min(most, scaling["initial_replicas"])
            deployment = {**_deployment(application), "autoscaling_config": first}
            application = {**application, "deployments": [deployment]}  # noqa: PLW2901
        held.append(application)
    return held


def _keep_routes(applications: Iterable[Body], running: Mapping[str, App]) -> list[Body]:
    """Leave running models at their routes until all that should run does.

    A router takes seconds to start. Were "/" given to it at once, or taken from the one that
    leaves before the last model has it, requests would find nothing there.
    """
    first: list[Body] = []
    moving = False
    for application in applications:
        app = running.get(application["name"])
        route = app.config.get("route_prefix") if app else None
        if route and route != application["route_prefix"]:
            moving = True
            first.append({**application, "route_prefix": route})
        else:
            first.append(application)
    names = {application["name"] for application in first}
    if moving and ROUTER in running and ROUTER not in names:
        first.append(running[ROUTER].config)
    if moving and ROUTER in names and ROUTER not in running:
        first = [{**a, "route_prefix": WAITING_ROUTE} if a["name"] == ROUTER else a for a in first]
    return first
