"""What keeps nodes from being started: hosts that lack something, and versions that differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from raycluster.apply.context import ApplyContext
from raycluster.core.errors import (
    HostError,
    PortInUseError,
    RayclusterError,
    raise_together,
)
from raycluster.core.events import Event
from raycluster.core.interfaces import Facts, ImageStore, KnownVersions, Versions
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.observe.facts import facts_of, read_gpus
from raycluster.plan.actions import Action, Remove, Start
from raycluster.plan.planner import moved_hosts
from raycluster.plan.preconditions import (
    check_counted,
    check_gpus,
    check_host_gpus,
    gpus_of,
    is_loopback,
)
from raycluster.plan.version_parity import check_versions, doubtful_engines
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ResolvedHost
from raycluster.spec.known_images import versions_in
from raycluster.state.cluster import ClusterState

Prepared = Mapping[tuple[str, str], Versions]
"""Host and role -> what is in the image or environment of the process."""


def facts_of_starts(work: ApplyContext, actions: Iterable[Action]) -> dict[str, Facts]:
    """Return what the hosts offer on which something is to be started."""
    hosts = dict.fromkeys(action.host for action in actions if isinstance(action, Start))
    return all_or_raise(work.fleet.each(hosts, facts_of))


def refuse_by_facts(
    work: ApplyContext,
    state: ClusterState,
    actions: Collection[Action],
    facts: Mapping[str, Facts],
) -> None:
    """Raise one error for all that hosts lack by their facts for what is to be started there.

    GPUs, addresses, programs and ports; where one is taken it is asked by whom.
    """
    starts = [a for a in actions if isinstance(a, Start)]
    freed = _freed(work, state, actions)

    def look(connected: Connected) -> None:
        host = connected.host
        mine = [s for s in starts if s.host == host.name]
        tries: list[Callable[[], object]] = []
        if any(s.process.role in RAY_ROLES for s in mine):
            tries += [
                lambda: check_host_gpus(host, facts[host.name]),
                lambda: check_loopback(connected),
            ]
        for start in mine:
            own = replace(start, replaces=start.replaces or host.name in freed)
            tries.append(
                partial(check_facts, host, own, facts[host.name], connected.runtime.neighbours)
            )
        raise_together(refusals(tries))

    all_or_raise(work.fleet.each(facts, look))
    if facts.keys() == {h.name for h in work.spec.hosts}:
        check_gpus(work.spec, {h.name: gpus_of(h, facts[h.name]) for h in work.spec.hosts})


def refusals(tries: Iterable[Callable[[], object]]) -> list[RayclusterError]:
    """Try one after the other, and return why they refuse."""
    found = []
    for each in tries:
        try:
            each()
        except RayclusterError as error:
            found.append(error)
    return found


def gone_hosts(actions: Iterable[Action]) -> set[str]:
    """Return the hosts from which everything is removed."""
    return {action.host for action in actions if isinstance(action, Remove) and not action.role}


def _freed(work: ApplyContext, state: ClusterState, actions: Iterable[Action]) -> set[str]:
    """Return the hosts on which our own ports get free."""
    gone = gone_hosts(actions)
    moved = moved_hosts(work.spec, state)
    places = {former.host.place for former in moved if former.host and former.name in gone}
    removes = {action.host for action in actions if isinstance(action, Remove)}
    return {h.name for h in work.spec.hosts if h.place in places} | removes


def refuse_versions(
    work: ApplyContext,
    state: ClusterState,
    actions: Collection[Action],
    facts: Mapping[str, Facts],
) -> None:
    """Raise where the nodes differ in what can be known before anything is brought to a host."""
    starts = {a.host: a for a in actions if isinstance(a, Start) and a.process.role in RAY_ROLES}

    handed_on = work.spec.distribution.images == "peer" and len(starts) > 1

    def look(connected: Connected) -> KnownVersions:
        process, given = starts[connected.host.name].process, connected.host.runtime.archive
        if (given or handed_on) and isinstance(connected.runtime, ImageStore):
            return KnownVersions(versions_in(process.image), whole=False)  # another may come
        return connected.runtime.known_versions(process)

    known = all_or_raise(work.fleet.each(starts, look))
    whole = {(n, starts[n].process.role): k.versions for n, k in known.items() if k.whole}
    partly = {name: k.versions for name, k in known.items() if not k.whole}
    _compare(work, state, whole, partly, gpus=on_gpus(work, facts))


def on_gpus(work: ApplyContext, facts: Mapping[str, Facts]) -> bool:
    return any(gpus_of(h, facts[h.name]) for h in work.spec.hosts if h.name in facts)


def check_nodes_gpus(work: ApplyContext, state: ClusterState) -> None:
    """Raise HostError where Ray counts fewer GPUs than the cluster should use; tell of ill ones."""
    nodes = {h.name: n for h in work.spec.hosts if h.gpus != 0 and (n := state.node(h))}

    def compare(connected: Connected) -> None:
        host, facts = connected.host, Facts()
        if host.gpus == "all":
            facts = replace(facts, gpus=read_gpus(connected.transport))
        check_counted(host, facts, nodes[host.name].gpus)
        if trouble := facts.gpus.problem:
            work.listen(Event(host.name, f"{trouble.what}; {trouble.hint}", "note"))

    all_or_raise(work.fleet.each(nodes, compare))


def refuse_other_versions(
    work: ApplyContext, state: ClusterState, prepared: Prepared, *, gpus: bool
) -> None:
    """Compare the Ray nodes that are to be started with those that stay."""
    versions = _compare(work, state, prepared, {}, gpus=gpus)
    for name, warning in doubtful_engines(versions).items():
        work.listen(Event(name, warning, "note"))


def _compare(
    work: ApplyContext,
    state: ClusterState,
    prepared: Prepared,
    partly: Mapping[str, Versions],
    *,
    gpus: bool,
) -> dict[str, Versions]:
    """Compare nodes that are to be started, and are known or only `partly`, with those that stay.

    Returns those that are known.
    """
    nodes = {(h.name, h.role): h for h in work.spec.hosts}
    if not nodes.keys() & prepared.keys() and not partly:
        return {}
    known = {
        (name, found.role): found.versions
        for name, seen in state.hosts.items()
        for found in seen.found
    }
    known.update(prepared)
    versions = {
        host: known[host, role]
        for host, role in nodes
        if (host, role) in known and host not in partly
    }
    check_versions(work.spec, versions, partly, gpus=gpus)
    return versions


def check_loopback(connected: Connected) -> None:
    """Raise HostError where Ray's processes would not find each other on the host's loopback."""
    if not is_loopback(connected.address):
        return
    done = connected.transport.run(("getent", "ahosts", "localhost"))
    ipv4 = any(line.startswith("127.") for line in done.text.splitlines())
    if done.exit_code == 0 and not ipv4:
        raise HostError(
            "has no IPv4 address besides loopback, where Ray listens on ::1 and cannot be reached "
            f"at {connected.address}",
            where=connected.host.name,
            hint="set private_address to the host's own IPv6 address",
        )


def check_facts(
    host: ResolvedHost,
    start: Start,
    facts: Facts,
    neighbours: Callable[[], Mapping[int, str]] = dict,
) -> None:
    """Raise HostError where the host cannot hold the process.

    Which other clusters are there is asked where a port is taken.
    """
    program = start.process.program
    if program and host.runs_own_programs and program not in facts.programs:
        raise HostError(
            f"{program} is not installed; without Docker, the {start.process.role} needs it",
            where=host.name,
            hint=f"install {program} there, or remove the {start.process.role} from the spec",
        )
    if start.replaces:
        return
    for name, port in sorted(start.process.ports.items()):
        if port in facts.listening:
            raise _taken(host, name, port, facts, neighbours)


def _taken(
    host: ResolvedHost,
    name: str,
    port: int,
    facts: Facts,
    neighbours: Callable[[], Mapping[int, str]],
) -> PortInUseError:
    who, hint = facts.holders.get(port, ""), "stop the program that listens there, or "
    with suppress(HostError):  # the user's name alone then
        if cluster := neighbours().get(port):
            who, hint = cluster, "clusters that share a host need different ports: "
    by = f" by {who}" if who else ""
    return PortInUseError(
        f"port {port} is already in use{by}", where=host.name, hint=f"{hint}set `ports.{name}`"
    )
