"""Cleans hosts: those that left a cluster, and all of them when it goes (`down`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from raycluster.apply.context import ApplyContext, ray_api
from raycluster.apply.distribution.image_staging import clear_staging
from raycluster.apply.entry import locked
from raycluster.apply.firewall import take_away
from raycluster.core.errors import (
    AuthError,
    ConnectionLostError,
    HostError,
    HostKeyError,
    RayclusterError,
    UnreachableError,
)
from raycluster.core.events import Event, Listener
from raycluster.core.interfaces import Secret
from raycluster.core.wait import wait_for
from raycluster.hosts.fleet import Connected, Fleet, all_or_raise
from raycluster.observe.cluster import observe
from raycluster.observe.facts import machine
from raycluster.plan.planner import moved_hosts, removed_hosts, stranded, unread
from raycluster.plan.preconditions import check_owner
from raycluster.services.ray_node import HEAD, TOKEN_FILE
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState
from raycluster.state.members import Former

AWAY = (UnreachableError, HostKeyError, AuthError, ConnectionLostError)
NODE_DRAIN_S = 120
"""Seconds for a node to give up its replicas; what has no room elsewhere, or a request that takes
longer, ends with it. A replica that is replaced has `serve.settings.DRAIN_S`."""


def recognise(
    fleet: Fleet, former: Iterable[Former], token: Secret
) -> dict[str, bool | RayclusterError]:
    """Tell, by name, of which former hosts there is something to clean, or why that is not known.

    A host's word alone sends nobody to another machine to delete there: what is there has to hold
    the cluster's token. It is read and compared here; nothing secret is sent.
    """
    hosts = {f.name: f.host for f in former if f.host}

    def look(connected: Connected) -> bool:
        held = connected.runtime.read(TOKEN_FILE)
        if not held and not connected.runtime.observe():
            return False
        if held != token.reveal().encode():
            raise HostError("the installation there does not have this cluster's token")
        return True

    looked = fleet.reach(hosts.values(), look)
    return {
        name: _not_cleaned(name, hosts[name].address, result)
        if isinstance(result, RayclusterError)
        else result
        for name, result in looked.items()
    }


def _not_cleaned(name: str, address: str, error: RayclusterError) -> HostError:
    login = isinstance(error, UnreachableError | HostKeyError | AuthError)
    return HostError(
        f"is a former host at {address} and could not be cleaned up: {error.what}",
        where=name,
        hint=f"`[ssh]` in the spec or your ssh config must say how to log in at {address}, and its "
        "host key must be known; or put it back into the spec"
        if login
        else "if it was a host of this cluster, put it back into the spec",
    )


def leave(
    work: ApplyContext, state: ClusterState, leaving: Iterable[Former]
) -> tuple[tuple[Former, ...], tuple[RayclusterError, ...]]:
    """Move replicas off hosts that left, and clean them.

    Returns those that could not be cleaned, and the errors of those that answered.
    """
    former = {f.name: f for f in leaving}
    known = recognise(work.fleet, former.values(), work.token)
    kept = [former[name] for name, told in known.items() if isinstance(told, RayclusterError)]
    for name, told in known.items():
        if isinstance(told, RayclusterError):
            work.listen(Event(name, f"stays as it is: {told}", "note"))
    ours = [former[name] for name, told in known.items() if told is True]
    drain(work, ours, spare={host.address for host in state.hosts.values()})
    left = forget(work, ours)
    answered = tuple(error for _, error in left if not isinstance(error, AWAY))
    return (*kept, *(host for host, _ in left)), answered


def make_way(work: ApplyContext, moved: Iterable[Former]) -> None:
    """Remove what hosts of the spec ran with another runtime. Raises HostError."""
    former = {f.name: f for f in moved}
    known = all_or_raise(recognise(work.fleet, former.values(), work.token))
    if kept := forget(work, [former[name] for name, ours in known.items() if ours]):
        where = kept[0][0].name
        raise HostError("the former runtime's processes could not be removed", where=where)


def drain(work: ApplyContext, leaving: Iterable[Former], spare: Collection[str]) -> None:
    """Ask Ray to move what runs on leaving hosts, and wait until Serve has done so.

    `spare` are addresses of hosts that stay, whatever else is said to have them.
    """
    work.fleet.check()
    hosts = [f.host for f in leaving if f.host]
    reached = work.fleet.reach(hosts, lambda connected: connected.address)
    names = {
        address: name
        for name, address in reached.items()
        if isinstance(address, str) and address not in spare
    }
    if not names:
        return
    head = work.fleet[work.head.name]
    with ray_api(work) as api:
        nodes = {n.node_id: names[n.address] for n in api.nodes() if n.alive and n.address in names}
        for node_id, name in nodes.items():
            work.listen(Event(name, "draining: moving its replicas to other hosts"))
            done = head.runtime.inside(HEAD).run(_drain_command(node_id), timeout=NODE_DRAIN_S)
            if done.exit_code:
                said = done.error_text.splitlines()[-1:]
                work.listen(Event(name, f"cannot be drained: {' '.join(said)}", "note"))

        def empty() -> bool | None:
            used = {r.node_id for a in api.apps() for r in a.replicas}
            return None if used & set(nodes) else True

        if nodes and wait_for(empty, timeout=NODE_DRAIN_S) is None:
            for name in nodes.values():
                work.listen(
                    Event(name, "some replicas are still there: no capacity elsewhere", "note")
                )


def clean_host(
    spec: ClusterSpec, connected: Connected, *, purge: bool = False, rules: bool = True
) -> tuple[str, ...]:
    """Remove everything of the cluster from a host, and return what that was. Raises HostError.

    `purge` takes what is kept for a next time too; without `rules` the firewall stays as it is.
    """
    removed = connected.runtime.remove(None, purge=purge)
    removed += clear_staging(connected, spec.distribution.folder, spec.cluster.name)
    if rules and take_away(connected, spec.cluster.name):
        removed = (*removed, "firewall rules")
    return removed


def _drain_command(node_id: str) -> tuple[str, ...]:
    return (
        *("ray", "drain-node", f"--node-id={node_id}"),
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=removed from the spec",
        f"--deadline-remaining-seconds={NODE_DRAIN_S}",
    )


def forget(
    work: ApplyContext, leaving: Iterable[Former]
) -> tuple[tuple[Former, RayclusterError], ...]:
    """Remove everything of ours from hosts that left; return those that could not be cleaned.

    A host that is in the spec under another name, with the same runtime, is left as it is.
    """
    former = {f.name: f for f in leaving}
    if not former:
        return ()
    work.fleet.check()
    staying = all_or_raise(work.fleet.each((h.name for h in work.spec.hosts), machine))
    kinds = {(told, work.fleet[name].host.kind) for name, told in staying.items()}

    def remove(connected: Connected) -> bool:
        here = machine(connected)
        if (here, connected.host.kind) in kinds:
            return False
        # with another runtime it has the rules still
        clean_host(work.spec, connected, rules=here not in staying.values())
        return True

    kept: list[tuple[Former, RayclusterError]] = []
    hosts = [f.host for f in former.values() if f.host]
    for name, result in work.fleet.reach(hosts, remove).items():
        if isinstance(result, RayclusterError):
            kept.append((former[name], result))
            work.listen(
                Event(name, f"was removed from the spec, but stays as it is: {result}", "note")
            )
        elif result:
            work.listen(Event(name, "removed", "done"))
    return tuple(kept)


def down(
    spec: ClusterSpec, fleet: Fleet, listen: Listener, *, purge: bool = False
) -> tuple[str, ...]:
    """Remove everything of this cluster from its hosts, those that left the spec too.

    Returns what was removed, as `host: thing`. A host that cannot be reached costs the others
    nothing: they are cleaned, and then an error names it.
    """
    head = fleet.reach(spec.hosts[:1], lambda c: c.transport)[spec.head_host.name]
    if isinstance(head, RayclusterError):
        return _down(spec, fleet, listen, purge=purge)  # there is nobody to ask for the lock
    with locked(spec, fleet, "raycluster down", listen):
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

    def clean(connected: Connected) -> tuple[str, ...]:
        removed = clean_host(spec, connected, purge=purge)
        text = f"removed {', '.join(removed)}" if removed else "nothing of this cluster was found"
        listen(Event(connected.host.name, text, "done"))
        return removed

    results = fleet.reach(hosts, clean)
    problems = [r for r in (*known.values(), *results.values()) if isinstance(r, RayclusterError)]
    problems += stranded(spec, state)
    removed = tuple(
        f"{name}: {thing}"
        for name, things in results.items()
        if isinstance(things, tuple)
        for thing in things
    )
    lines = (
        [f"{len(problems)} hosts could not be cleaned up", *map(str, problems)] if problems else []
    )
    lines += map(str, unread(state))
    if lines:
        raise HostError("\n".join(lines))
    return removed
