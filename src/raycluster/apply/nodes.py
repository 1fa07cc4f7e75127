"""Carries a plan out, stage by stage: prepare, head, workers, other services, removals."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from raycluster.apply.context import ApplyContext, record, recorded
from raycluster.apply.distribution.images import bring_images
from raycluster.apply.firewall import guard
from raycluster.apply.host_removal import leave, make_way
from raycluster.apply.image_parity import settled, tell_other_images
from raycluster.core.errors import (
    CommandError,
    HostError,
    PortInUseError,
    RayclusterError,
    raise_together,
)
from raycluster.core.events import Event
from raycluster.core.interfaces import Facts, Files, ImageStore, KnownVersions, Process, Versions
from raycluster.core.wait import raise_lasting, wait_for
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.remote_files import push_live
from raycluster.observe.cluster import observe
from raycluster.observe.facts import facts_of, read_gpus, read_listening
from raycluster.observe.liveness import EARLY_S, no_start, raise_if_dead
from raycluster.plan.actions import EVERYTHING, Action, ApplyFirewall, Only, Reload, Remove, Start
from raycluster.plan.planner import moved_hosts, removed_hosts, stranded_hosts
from raycluster.plan.preconditions import (
    check_counted,
    check_gpus,
    check_host_gpus,
    gpus_of,
    is_loopback,
)
from raycluster.plan.version_parity import check_versions, doubtful_engines
from raycluster.services.node_files import code_files, secret_files
from raycluster.services.processes import desired
from raycluster.services.ray_node import HEAD, NEW_FILE, RAY_ROLES, WORKER, within
from raycluster.services.wiring import Wiring
from raycluster.spec import ResolvedHost
from raycluster.spec.known_images import versions_in
from raycluster.state.cluster import ClusterState
from raycluster.state.members import Former

FORWARD_TRIES = 10
"""So often a port at which the host listens may not be reached through the connection to it."""
SERVICE_S = 60
"""Seconds for a service to listen; Prometheus replays what it has stored before."""


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


Prepared = Mapping[tuple[str, str], Versions]
"""Host and role -> what is in the image or environment of the process."""


def facts_of_starts(work: ApplyContext, actions: Iterable[Action]) -> dict[str, Facts]:
    """Return what the hosts offer on which something is to be started."""
    hosts = dict.fromkeys(action.host for action in actions if isinstance(action, Start))
    return all_or_raise(work.fleet.each(hosts, facts_of))


def _here(work: ApplyContext, start: Start, facts: Facts) -> Start:
    """Return a start with what the host at hand makes of the process."""
    if start.process.role not in RAY_ROLES:
        return start
    host = work.fleet[start.host].host
    return replace(start, process=within(start.process, host, facts.limits))


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
    _compare(work, state, whole, partly, gpus=_on_gpus(work, facts))


def _on_gpus(work: ApplyContext, facts: Mapping[str, Facts]) -> bool:
    return any(gpus_of(h, facts[h.name]) for h in work.spec.hosts if h.name in facts)


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
    _check_versions(work, state, prepared, gpus=_on_gpus(work, facts))
    tell_other_images(work, state, [s for s in starts if s.process.role in RAY_ROLES])
    return starts, prepared


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


def _check_versions(
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


def wait_for_service(connected: Connected, process: Process) -> None:
    """Wait until the process listens on all its ports. Raises HostError with its last words."""

    def listens() -> bool | None:
        raise_if_dead(connected, process.role)
        listening = read_listening(connected.transport)
        return True if listening.issuperset(process.ports.values()) else None

    if wait_for(listens, timeout=SERVICE_S) is None:
        raise no_start(connected, process.role, f"the {process.role} is not listening")


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


def wait_for_head(work: ApplyContext) -> None:
    """Wait until the head's control store takes connections: workers can join from then on."""
    connected = work.fleet[work.head.name]

    listened = 0

    def answers() -> bool | None:
        nonlocal listened
        try:
            connected.transport.connect(("127.0.0.1", work.spec.ports.gcs), timeout=5).close()
        except HostError as error:
            raise_lasting(error)
            raise_if_dead(connected, HEAD)
            listened += work.spec.ports.gcs in read_listening(connected.transport)
            if listened > FORWARD_TRIES:  # it is there, and the way to it is not
                raise
            return None
        return True

    if wait_for(answers, timeout=work.spec.cluster.node_timeout) is None:
        raise no_start(connected, HEAD, "Ray's control store (GCS) did not start")


def former_nodes(
    work: ApplyContext, state: ClusterState, starts: Iterable[Start]
) -> frozenset[str]:
    """Return the ids of the nodes that these starts of workers replace.

    Ray counts a node that was killed among the live ones for some seconds.
    """
    started = {s.host for s in starts if s.process.role == WORKER}
    nodes = (state.node(h) for h in work.spec.hosts if h.name in started)
    return frozenset(node.node_id for node in nodes if node)


def wait_for_nodes(
    work: ApplyContext, hosts: Collection[ResolvedHost], former: frozenset[str] = frozenset()
) -> None:
    """Wait until Ray counts these hosts among its live nodes, by other ids than the former."""
    pending = {h.name for h in hosts}
    early = time.monotonic() + EARLY_S
    down: dict[str, float] = {}

    def joined() -> bool | None:
        state = observe(work.spec, work.fleet)
        raise_lasting(state.head_problem)
        for host in work.spec.hosts:
            node = state.node(host)
            if host.name in pending and node and node.node_id not in former:
                pending.discard(host.name)
                work.listen(Event(host.name, "has joined", "done"))
        now = time.monotonic()
        for name in pending if now < early else ():
            raise_if_dead(work.fleet[name], work.fleet[name].host.role)
        for name in pending:
            raise_lasting(state.hosts[name].problem)
            runs = state.hosts[name].problem or state.runs(work.fleet[name].host)
            since = down.setdefault(name, now)
            if runs:
                del down[name]
            elif now - since > EARLY_S:  # whoever starts it again has tried by then
                raise_if_dead(work.fleet[name], work.fleet[name].host.role)
        return None if pending else True

    if wait_for(joined, timeout=work.spec.cluster.node_timeout) is None:
        late = work.fleet[sorted(pending)[0]]
        raise no_start(late, late.host.role, "did not join the cluster")


def _take_off(work: ApplyContext, removes: Collection[Remove]) -> None:
    def remove(connected: Connected) -> None:
        for action in removes:
            if action.host == connected.host.name:
                connected.runtime.remove(action.role)

    if removes:
        work.fleet.check()
    all_or_raise(work.fleet.each(dict.fromkeys(r.host for r in removes), remove))
