"""Compares a spec with what was seen, and returns the actions that are left to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

from raycluster.core.errors import DegradedError, HostError
from raycluster.core.interfaces import Found, Process
from raycluster.plan.actions import (
    ATTEMPT,
    EVERYTHING,
    WHY_RULES,
    Action,
    ApplyFirewall,
    Deploy,
    Only,
    Reload,
    Remove,
    Start,
)
from raycluster.plan.preconditions import check_addresses
from raycluster.plan.rollout import plan_rollout, restarts, same
from raycluster.services import firewall
from raycluster.services.processes import desired
from raycluster.services.ray_node import HEAD, RAY_ROLES
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state.cluster import App, ClusterState, RayNode
from raycluster.state.free_capacity import Memory
from raycluster.state.images import started_from
from raycluster.state.members import Former, former

MOST_ATTEMPTS = 1_000_000


def plan_nodes(
    spec: ClusterSpec, state: ClusterState, wiring: Wiring, only: Only = EVERYTHING
) -> tuple[Action, ...]:
    """Return what brings the hosts to the spec: head, workers, other services, removals."""
    check_addresses(spec, wiring.addresses)
    starts: list[Start] = []
    guards: list[ApplyFirewall] = []
    reloads: list[Reload] = []
    removes: list[Remove] = []
    new_head = False
    images = started_from(spec, state)
    for host in (h for h in spec.hosts if only.nodes(h)):
        seen = state.hosts[host.name]
        wanted = tuple(p for p in desired(spec, host, wiring) if only.role(p.role))
        rules, digits = firewall.wanted(spec, host, wiring)
        if digits != seen.firewall and only.part != "gateway":
            why = WHY_RULES.get(seen.firewall, "the cluster changed")
            guards.append(ApplyFirewall(host.name, rules, why if rules else "no longer managed"))
        for process in wanted:
            found = seen.role(process.role)
            reason = _why_start(process, found)
            if not reason and new_head and process.role in RAY_ROLES:
                reason = "joins the new head"
            new_head = new_head or (process.role == HEAD and bool(reason))
            if reason:
                start = Start(host.name, process, reason, replaces=found is not None)
                starts.append(pinned(start, host, images.get(process.image, {})))
            elif process.reload and seen.live.get(process.role) != process.live_id:
                reloads.append(Reload(host.name, process))
        found_roles = [found for found in seen.found if only.role(found.role)]
        removes += _strangers(host.name, found_roles, keep={p.role for p in wanted})
    starts.sort(key=lambda start: start.process.role not in RAY_ROLES)
    if only == EVERYTHING:
        removes += [
            Remove(f.name, None, "its runtime has changed") for f in moved_hosts(spec, state)
        ]
        removes += [
            Remove(f.name, None, f"no longer in the spec, at {f.member.address}")
            for f in removed_hosts(spec, state)
        ]
    return (*guards, *starts, *reloads, *removes)


def pinned(start: Start, host: ResolvedHost, digests: Mapping[str, str]) -> Start:
    """Return the start with the image that the first host with a digest has under this name.

    `digests` are those of hosts, in the order of the spec.
    """
    own = host.runtime.archive and start.process.role == host.role
    if not digests or start.process.digest or own or host.runtime.pull == "always":
        return start
    return replace(start, process=replace(start.process, digest=next(iter(digests.values()))))


def _why_start(desired: Process, found: Found | None) -> str:
    if found is None:
        return "not running"
    if found.fingerprint != desired.fingerprint:
        return "the spec changed"
    if found.health != "running":
        return f"is {found.health}{': ' + found.detail if found.detail else ''}"
    return ""


def _strangers(host: str, found: Iterable[Found], keep: Set[str]) -> list[Remove]:
    unknown = {f.role for f in found} - keep
    return [Remove(host, role, "not in the spec for this host") for role in sorted(unknown)]


def removed_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return the hosts that an earlier `up` recorded and the spec no longer names."""
    return tuple(f for f in former(spec, state.members) if f.host and not f.moved)


def moved_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return hosts of the spec as an earlier `up` recorded them, when with another runtime."""
    return tuple(f for f in former(spec, state.members) if f.host and f.moved)


def stranded_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return the recorded hosts that are to be cleaned, and that no run with this spec can."""
    return tuple(f for f in former(spec, state.members) if not f.host)


def stranded(spec: ClusterSpec, state: ClusterState) -> tuple[HostError, ...]:
    """Return why they stay as they are, one error for each."""
    return tuple(
        HostError(f"stays as it is: it {f.trouble}", where=f.name, hint=f.hint)
        for f in stranded_hosts(spec, state)
    )


def unread(state: ClusterState) -> tuple[DegradedError, ...]:
    """Return what a run does without where no node's records can be read."""
    if state.unread is None:
        return ()
    error = state.unread
    step = "run `raycluster down` with the earlier spec to clean up hosts that were removed from it"
    what = f"{error.what}: hosts that were removed from the spec are not known"
    return (DegradedError(what, where=error.where, hint=error.hint or step),)


def plan_app(
    wanted: Mapping[str, Any],
    apps: tuple[App, ...] | None,
    nodes: tuple[RayNode, ...] = (),
    memory: Mapping[str, Memory] | None = None,
) -> Deploy | None:
    """Return the deployment that is needed, or None when the running one is the wanted one.

    `memory` is what the nodes have of it, by node id.
    """
    by_name = {a.name: a for a in apps or ()}
    body = {
        **wanted,
        "applications": [_attempt(a, by_name.get(a["name"])) for a in wanted["applications"]],
    }
    reasons: list[str] = []
    for want in body["applications"]:
        app = by_name.pop(want["name"], None)
        if app is None:
            reasons.append(f"{want['name']}: not deployed")
        elif app.status == "NOT_STARTED" or (app.failed and ATTEMPT in want["args"]):
            reasons.append(f"{app.name}: {app.status.lower().replace('_', ' ')}")
        elif not same(app.config, want):
            reasons.append(f"{want['name']}: changed")
    reasons += [f"{name}: not in the spec" for name in by_name]
    if not reasons:
        return None
    return Deploy(plan_rollout(body, apps or (), nodes, memory or {}), tuple(reasons))


def _attempt(want: Mapping[str, Any], app: App | None) -> Mapping[str, Any]:
    """Return the application with the number of the attempt, where it is not the first.

    Serve never tries a version again that did not start; a new number makes it another version.
    """
    if app is None:
        return want
    told = app.config.get("args", {}).get(ATTEMPT, 0)
    attempt = told if type(told) is int and 0 <= told < MOST_ATTEMPTS else 0
    again = {**want, "args": {**want["args"], ATTEMPT: attempt}} if attempt else want
    if restarts(app.config, again):
        return want
    return {**want, "args": {**want["args"], ATTEMPT: attempt + 1}} if app.failed else again
