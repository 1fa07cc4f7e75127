"""Reads the hosts: processes, token, recorded members, Ray's nodes and Serve's applications."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from raycluster.core.errors import (
    HostError,
    PortInUseError,
    RayclusterError,
    RecordError,
)
from raycluster.core.interfaces import (
    Secret,
    live_id_path,
)
from raycluster.core.stored_json import MOST
from raycluster.hosts.dashboard import taken
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.ray_api import open_ray_api
from raycluster.services import firewall
from raycluster.services.firewall import RULES_ID, read_script
from raycluster.services.gateway import GATEWAY
from raycluster.services.ray_node import HEAD, MEMBERS_FILE, TOKEN_FILE
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import UNREAD, ClusterState, HostState
from raycluster.state.members import of_another, read_members, read_token

_READ_RECORDS = (
    f'cd "$RAYCLUSTER_ROOT" && head -c 65 {TOKEN_FILE} && echo && head -c {MOST + 1} {MEMBERS_FILE}'
)


def observe(
    spec: ClusterSpec, fleet: Fleet, met: Callable[[Connected], object] = lambda _: None
) -> ClusterState:
    """Return what is there now; a host that cannot be seen carries its problem.

    `met` is called with each host as soon as it is connected, and should return at once.
    """

    def see(connected: Connected) -> HostState:
        met(connected)
        return _see(spec, connected)

    hosts = fleet.reach(spec.hosts, see)
    states = {
        name: seen if isinstance(seen, HostState) else HostState(name, problem=seen)
        for name, seen in hosts.items()
    }
    state = _with_records(spec, fleet, ClusterState(states))
    token = state.token
    head = states[spec.head_host.name].role(HEAD)
    if states[spec.head_host.name].problem:
        return state
    if head is not None and head.health != "running":
        return replace(state, head_problem=_taken(spec, fleet))
    if token is None or head is None:
        return state
    return _with_ray(spec, fleet, state, token)


def _see(spec: ClusterSpec, connected: Connected) -> HostState:
    found, name = connected.runtime.observe(), connected.host.name
    done = connected.transport.run(("sh", "-c", read_script(spec.cluster.name)))
    rules, _, owner = done.text.partition("\n")
    owner = firewall.owner_in(owner)
    if done.exit_code != 0 or not re.fullmatch(RULES_ID, rules):
        rules = UNREAD
    if problem := of_another(spec, name, found, owner):
        return HostState(
            name, connected.address, found, {}, rules, firewall_owner=owner, problem=problem
        )
    told = [f.role for f in found if spec.gateway and f.role == GATEWAY and f.health == "running"]
    live = {role: _live_id(connected, role) for role in told}
    return HostState(name, connected.address, found, live, rules, firewall_owner=owner)


def _live_id(connected: Connected, role: str) -> str:
    """Return which files the process has read, or "" where it does not tell."""
    script = f'cat "$RAYCLUSTER_ROOT/{live_id_path(role)}"'
    try:
        return connected.runtime.inside(role).run(("sh", "-c", script)).text.strip()
    except HostError:
        return ""  # it stopped since it was seen


def _with_records(spec: ClusterSpec, fleet: Fleet, state: ClusterState) -> ClusterState:
    """Add token and members from the first running node whose records can be read; all have both.

    Members that do not come with the token are another cluster's.
    """
    for host in spec.hosts:
        if not state.runs(host):
            continue
        try:
            done = fleet[host.name].runtime.inside(host.role).run(("sh", "-c", _READ_RECORDS))
        except HostError:
            continue  # it stopped since it was seen
        first, _, second = done.stdout.partition(b"\n")
        if done.exit_code != 0 or not first:
            continue
        try:
            token = read_token(first, host.name)
            if state.token and token != state.token:
                continue
            state = replace(state, token=token)
            return replace(state, members=read_members(second, host.name), unread=None)
        except RecordError as error:
            state = replace(state, unread=state.unread or error)
    return state


def _taken(spec: ClusterSpec, fleet: Fleet) -> RayclusterError | None:
    """Return who holds the port that a head needs to come back."""
    try:
        return taken(fleet[spec.head_host.name], spec.ports.dashboard)
    except RayclusterError:
        return None  # the head is told to be away


def _with_ray(spec: ClusterSpec, fleet: Fleet, state: ClusterState, token: Secret) -> ClusterState:
    with open_ray_api(fleet[spec.head_host.name], spec.ports.dashboard, token) as api:
        try:
            with ThreadPoolExecutor(1) as beside:
                nodes = beside.submit(api.nodes)
                apps = api.apps()
                return replace(state, nodes=nodes.result(), apps=apps)
        except PortInUseError as error:
            return replace(state, head_problem=error)
        except RayclusterError as error:  # it may have ended meanwhile
            return replace(state, head_problem=_taken(spec, fleet) or error)
