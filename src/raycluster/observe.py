"""Reads the hosts: processes, token, recorded members, Ray's nodes and Serve's applications."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from raycluster import limits
from raycluster.accelerators import host as gpus_of_host
from raycluster.accelerators.values import Accelerators, Trouble, clean, sharing
from raycluster.connect import Connected, Fleet
from raycluster.contracts import (
    PROGRAMS,
    PYTHON,
    Facts,
    Secret,
    Shell,
    Transport,
    file_mode,
    live_id_path,
)
from raycluster.dashboard import HOLDERS, LISTENING, dashboard, taken, who_listens
from raycluster.decode import MOST
from raycluster.errors import (
    CommandError,
    ConnectionLostError,
    HostError,
    PortInUseError,
    RayclusterError,
    RecordError,
    UnreachableError,
)
from raycluster.limits import Limits
from raycluster.members import read_members, read_token
from raycluster.plan import of_another
from raycluster.ray_api import RayApi
from raycluster.services import firewall
from raycluster.services.firewall import RULES_ID, read_script
from raycluster.services.gateway import GATEWAY
from raycluster.services.ray_node import HEAD, MEMBERS_FILE, TOKEN_FILE
from raycluster.spec import ClusterSpec
from raycluster.state import UNREAD, ClusterState, HostState
from raycluster.untrusted import free_bytes, not_understood, text_of

_READ_RECORDS = (
    f'cd "$RAYCLUSTER_ROOT" && head -c 65 {TOKEN_FILE} && echo && head -c {MOST + 1} {MEMBERS_FILE}'
)

_MACHINE = 'echo "$(cat /proc/sys/kernel/random/boot_id)" "$(readlink /proc/self/ns/net)"'

_READ_FACTS = """
LC_ALL=C; export LC_ALL
echo machine "$(uname -m)"
echo glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
df -Pk / 2>&1 | sed 's/^/disk /'
LISTEN
echo epoch "$(date +%s.%N)"
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
for program in {programs}; do command -v "$program" >/dev/null && echo program "$program"; done
true
""".replace("{programs}", " ".join(PROGRAMS)).replace("LISTEN", HOLDERS)
_OF_MACHINE = ("MemTotal:", "online", "allowed")
GPUS_S = 75.0
"""Seconds for all questions about GPUs; each of them has its own limit on the host."""


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
    head = states[spec.hosts[0].name].role(HEAD)
    if states[spec.hosts[0].name].problem:
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
        return taken(fleet[spec.hosts[0].name], spec.ports.dashboard)
    except RayclusterError:
        return None  # the head is told to be away


def _with_ray(spec: ClusterSpec, fleet: Fleet, state: ClusterState, token: Secret) -> ClusterState:
    head = spec.hosts[0].name
    with dashboard(fleet[head], spec.ports.dashboard, token) as client:
        api = RayApi(head, client)
        try:
            with ThreadPoolExecutor(1) as beside:
                nodes = beside.submit(api.nodes)
                apps = api.apps()
                return replace(state, nodes=nodes.result(), apps=apps)
        except PortInUseError as error:
            return replace(state, head_problem=error)
        except RayclusterError as error:  # it may have ended meanwhile
            return replace(state, head_problem=_taken(spec, fleet) or error)


def facts_of(connected: Connected) -> Facts:
    """Return what the host offers to what its runtime starts there. Raises HostError."""
    return read_facts(connected.transport, boxed=not connected.host.runs_own_programs)


def read_facts(transport: Transport, *, boxed: bool = False) -> Facts:
    """Return what the host offers, to what a daemon starts where `boxed`. Raises HostError."""
    values = _told(transport, limits.script(boxed=boxed) + _READ_FACTS)
    found = limits.read(values)
    if found is None:
        told = [f"{word} {line}" for word in _OF_MACHINE for line in values.get(word, ())]
        raise not_understood("the host (memory and processors)", transport.address, "; ".join(told))
    disk = values.get("disk", ())
    free = next((size for line in disk if (size := free_bytes(line)) is not None), None)
    kind = clean("".join(values.get("machine", ())), 20)
    return Facts(
        gpus=sharing(read_gpus(transport), found.memory_bytes, kind),
        cpus=found.whole_cpus,
        memory_bytes=found.memory_bytes,
        disk_free_bytes=free,
        disk_problem="" if free is not None else clean(" ".join(disk)) or "df printed nothing",
        listening=_ports(values),
        holders={port: who for (port, _), who in who_listens(values).items()},
        epoch=_clock(transport, values.get("epoch", ())),
        programs=frozenset(PROGRAMS).intersection(values.get("program", ())),
        machine=kind,
        glibc=_glibc("".join(values.get("glibc", ()))),
        limits=found,
    )


def read_limits(connected: Connected) -> Limits | None:
    """Return what processes of ours may take of a host now. Raises HostError."""
    boxed = not connected.host.runs_own_programs
    return limits.read(_told(connected.transport, limits.script(boxed=boxed)))


def _clock(transport: Transport, said: Sequence[str]) -> float:
    """Return seconds since the epoch, whole ones where `date` knows no parts. Raises AnswerError.

    That of Busybox prints `%N` as it stands, or nothing for it.
    """
    match = re.match(r"[0-9]{1,12}(\.[0-9]{1,9}(?![^\s]))?", said[0].strip()) if said else None
    if match is None:
        raise not_understood("the host's `date`", transport.address, "".join(said[:1]))
    return float(match[0])


def _glibc(said: str) -> str:
    """Return the version in what `getconf` says, such as "glibc 2.36", or ""."""
    match = re.fullmatch(r"glibc ([0-9]{1,3}\.[0-9]{1,3})[0-9.]{0,9}", said.strip())
    return match[1] if match else ""


def read_listening(transport: Transport) -> frozenset[int]:
    """Return the ports on which the host listens. Raises HostError."""
    return _ports(_told(transport, f"{LISTENING}true"))


def read_gpus(transport: Transport) -> Accelerators:
    """Return the host's GPUs, or why they do not answer. Raises HostError."""
    try:
        done = transport.run(("sh", "-c", gpus_of_host.script()), timeout=GPUS_S)
    except (ConnectionLostError, UnreachableError):
        raise
    except HostError as error:  # it did not end: a driver that hangs cannot even be killed
        return Accelerators(
            problem=Trouble(
                f"cannot query the host's GPUs: {error.what}",
                "a GPU or its driver hangs: see `dmesg | grep -i -e xid -e nvrm`, and reboot it",
            )
        )
    if done.exit_code != 0:
        said = (
            clean(done.stderr.decode("utf-8", "replace"))
            or f"it exited with status {done.exit_code}"
        )
        return Accelerators(problem=Trouble(f"cannot query the host's GPUs: {said}"))
    return gpus_of_host.read(done.text)


def _told(transport: Transport, script: str) -> dict[str, list[str]]:
    """Return the lines that a script printed, by their first word. Raises HostError."""
    done = transport.run(("sh", "-c", script))
    return gpus_of_host.by_word(text_of(done, "read the host's facts", transport.address))


def _ports(values: Mapping[str, list[str]]) -> frozenset[int]:
    return frozenset(port for port, _ in who_listens(values))


def machine(connected: Connected) -> str:
    """Return what tells this machine from others, whatever they are called. Raises HostError."""
    done = connected.transport.run(("sh", "-c", _MACHINE))
    told = text_of(done, "identify the machine", connected.host.name).strip()
    if not re.fullmatch(r"\S{1,100} \S{1,100}", told):
        raise not_understood("the host's kernel", connected.host.name, told)
    return told


def push_files(shell: Shell, files: Mapping[str, bytes]) -> None:
    """Write files under the cluster's folder of a running process. Raises HostError."""
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), file_mode(content)
            tar.addfile(info, io.BytesIO(content))
    done = shell.run((*PYTHON, "-c", _UNPACK), input=packed.getvalue())
    if done.exit_code != 0:
        raise CommandError(
            f"cannot write files: {done.stderr.decode(errors='replace').strip()[-300:]}",
            status=done.exit_code,
        )


def push_live(shell: Shell, files: Mapping[str, bytes]) -> None:
    """Write files under the cluster's folder of any running process. Raises HostError."""
    for path, content in files.items():
        done = shell.run(("sh", "-c", _REPLACE, path), input=content)
        if done.exit_code != 0:
            raise CommandError(
                f"cannot write {path}: {done.stderr.decode(errors='replace').strip()[-300:]}",
                status=done.exit_code,
            )


_REPLACE = 'umask 077; cd "$RAYCLUSTER_ROOT" && cat >"$0.new" && mv -f "$0.new" "$0"'
_UNPACK = """
import os, sys, tarfile
root = os.environ["RAYCLUSTER_ROOT"]
os.umask(0o077)
for member in (tar := tarfile.open(fileobj=sys.stdin.buffer, mode="r|")):
    path = os.path.join(root, member.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "wb") as out:
        out.write(tar.extractfile(member).read())
    os.chmod(path + ".new", member.mode)
    os.replace(path + ".new", path)
"""
