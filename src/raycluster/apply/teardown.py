"""`down`: removes everything of a cluster from its hosts, those that left the spec too."""

from __future__ import annotations

from raycluster.apply.entry import locked
from raycluster.apply.host_removal import clean_host, recognise
from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.events import Event, Listener
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.observe.cluster import observe
from raycluster.plan.planner import moved_hosts, removed_hosts, stranded, unread
from raycluster.plan.preconditions import check_owner
from raycluster.spec import ClusterSpec


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
