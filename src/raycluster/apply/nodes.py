"""Carries a plan out, stage by stage: prepare, head, workers, other services, removals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from raycluster.apply.context import ApplyContext, record, recorded
from raycluster.apply.distribution.images import bring_images
from raycluster.apply.firewall import guard
from raycluster.apply.host_removal import leave, make_way
from raycluster.apply.image_parity import settled, tell_other_images
from raycluster.apply.node_checks import (
    Prepared,
    facts_of_starts,
    gone_hosts,
    on_gpus,
    refuse_by_facts,
    refuse_other_versions,
)
from raycluster.apply.node_waits import (
    former_nodes,
    wait_for_head,
    wait_for_nodes,
    wait_for_service,
)
from raycluster.core.errors import CommandError, RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import Facts, Files, Versions
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.remote_files import push_live
from raycluster.observe.cluster import observe
from raycluster.plan.actions import EVERYTHING, Action, ApplyFirewall, Only, Reload, Remove, Start
from raycluster.plan.planner import moved_hosts, removed_hosts, stranded_hosts
from raycluster.services.node_files import code_files, secret_files
from raycluster.services.processes import desired
from raycluster.services.ray_node import HEAD, NEW_FILE, RAY_ROLES, WORKER, within
from raycluster.services.wiring import Wiring
from raycluster.state.cluster import ClusterState
from raycluster.state.members import Former


def apply_nodes(
    work: ApplyContext, state: ClusterState, actions: tuple[Action, ...], only: Only = EVERYTHING
) -> tuple[RayclusterError, ...]:
    """Start, restart and remove processes until the hosts are as planned.

    Nothing is started before every host that needs something was found ready for it. Returns why
    hosts that left, and answer, could not be cleaned; the cluster is none the worse for it.
    """
    starts = [a for a in actions if isinstance(a, Start)]
    removes = [a for a in actions if isinstance(a, Remove)]
    gone = gone_hosts(actions)
    removed, stranded = removed_hosts(work.spec, state), stranded_hosts(work.spec, state)
    leaving = [f for f in removed if f.name in gone]
    moved = [f for f in moved_hosts(work.spec, state) if f.name in gone]
    facts = facts_of_starts(work, starts)
    refuse_by_facts(work, state, actions, facts)
    starts, versions = _prepare(work, state, starts, facts)
    starts = [_here(work, start, facts[start.host]) for start in starts]
    guard(work, [a for a in actions if isinstance(a, ApplyFirewall)])
    _take_off(work, [r for r in removes if r.role])
    make_way(work, moved)
    former = (*removed, *stranded)
    if leaving or state.unread or any(s.process.role == WORKER for s in starts):
        record(work, state, former)
    files = _files(work, former)
    for role in RAY_ROLES:
        _start(work, [s for s in starts if s.process.role == role], versions, files)
        if starts and role == HEAD:
            wait_for_head(work)
    if starts:
        hosts = [h for h in work.spec.hosts if only.nodes(h)]
        wait_for_nodes(work, hosts, former_nodes(work, state, starts))
    _start_services(work, [s for s in starts if s.process.role not in RAY_ROLES], versions)
    _reload(work, [a for a in actions if isinstance(a, Reload)])
    if leaving:
        kept, unclean = leave(work, state, leaving)
        record(work, observe(work.spec, work.fleet), (*kept, *stranded))
        return unclean
    return ()


def _files(work: ApplyContext, former: Iterable[Former]) -> dict[str, bytes]:
    return {
        **secret_files(work.token, work.secrets.replicas),
        **recorded(work, former),
        **code_files(),
        NEW_FILE: b"",
    }


def _here(work: ApplyContext, start: Start, facts: Facts) -> Start:
    """Return a start with what the host at hand makes of the process."""
    if start.process.role not in RAY_ROLES:
        return start
    host = work.fleet[start.host].host
    return replace(start, process=within(start.process, host, facts.limits))


def _prepare(
    work: ApplyContext, state: ClusterState, starts: list[Start], facts: Mapping[str, Facts]
) -> tuple[list[Start], Prepared]:
    """Bring to the hosts what they need and compare it; return the starts as they are made."""
    hosts = list(dict.fromkeys(s.host for s in starts))
    work.fleet.check()
    login = work.secrets.registry
    starts = [replace(s, process=replace(s.process, login=login)) for s in settled(work, starts)]
    bring_images(work, {h: [s.process for s in starts if s.host == h] for h in hosts})

    def prepare(connected: Connected) -> dict[str, Versions]:
        name = connected.host.name
        tell = work.tell(name)
        mine = [s for s in starts if s.host == name]
        found = {s.process.role: connected.runtime.prepare(s.process, tell) for s in mine}
        if v := found.get(connected.host.role):
            tell(f"ready: Ray {v.ray}, Python {v.python}, vLLM {v.vllm or 'none'}")
        return found

    by_host = all_or_raise(work.fleet.each(hosts, prepare))
    prepared = {(name, role): v for name, found in by_host.items() for role, v in found.items()}
    refuse_other_versions(work, state, prepared, gpus=on_gpus(work, facts))
    tell_other_images(work, state, [s for s in starts if s.process.role in RAY_ROLES])
    return starts, prepared


def _start(work: ApplyContext, starts: list[Start], prepared: Prepared, files: Files) -> None:
    """Start processes, those of one host one after the other; `files` are for each of them."""

    def start(connected: Connected) -> None:
        name = connected.host.name
        tell = work.tell(name)
        for process in (s.process for s in starts if s.host == name):
            tell(f"starting the {process.role}")
            if process.note:
                work.listen(Event(name, process.note, "note"))
            whole = {**files, **process.files, **process.live_files}
            connected.runtime.start(process, prepared[name, process.role], whole, tell)

    if starts:
        work.fleet.check()
    all_or_raise(work.fleet.each(dict.fromkeys(s.host for s in starts), start))


def _start_services(work: ApplyContext, starts: list[Start], prepared: Prepared) -> None:
    """Start what is no node of Ray, and wait until it listens."""
    _start(work, starts, prepared, {})

    def wait(connected: Connected) -> None:
        for start in (s for s in starts if s.host == connected.host.name):
            wait_for_service(connected, start.process)
            work.listen(Event(start.host, f"{start.process.role} is up", "done"))

    all_or_raise(work.fleet.each(dict.fromkeys(s.host for s in starts), wait))


def _reload(work: ApplyContext, reloads: list[Reload]) -> None:
    """Hand changed files to running processes and tell them. Raises HostError if they refuse."""

    def tell(connected: Connected) -> None:
        for process in (r.process for r in reloads if r.host == connected.host.name):
            shell = connected.runtime.inside(process.role)
            new = {
                f"{process.role}/new/{path.partition('/')[2]}": content
                for path, content in process.live_files.items()
            }
            push_live(shell, new)
            done = shell.run(process.reload)
            if done.exit_code != 0:
                raise CommandError(
                    f"the {process.role} rejected its new configuration and keeps using the "
                    "previous one: "
                    f"{done.error_text}",
                    where=connected.host.name,
                    hint=f"raycluster logs {connected.host.name}/{process.role}",
                    status=done.exit_code,
                )
            work.listen(
                Event(connected.host.name, f"{process.role} has reloaded its configuration", "done")
            )

    if reloads:
        work.fleet.check()
    all_or_raise(work.fleet.each(dict.fromkeys(r.host for r in reloads), tell))


def refresh(work: ApplyContext, wiring: Wiring, only: Only) -> None:
    """Hand the files that running processes read again by themselves to them."""

    def push(connected: Connected) -> None:
        for process in desired(work.spec, connected.host, wiring):
            if process.live_files and not process.reload:
                push_live(connected.runtime.inside(process.role), process.live_files)

    hosts = (host.name for host in work.spec.hosts if only.nodes(host))
    work.fleet.check()
    all_or_raise(work.fleet.each(hosts, push))


def _take_off(work: ApplyContext, removes: Collection[Remove]) -> None:
    def remove(connected: Connected) -> None:
        for action in removes:
            if action.host == connected.host.name:
                connected.runtime.remove(action.role)

    if removes:
        work.fleet.check()
    all_or_raise(work.fleet.each(dict.fromkeys(r.host for r in removes), remove))
