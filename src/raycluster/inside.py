"""What a person looks at inside a cluster: one host by name, and the app's logs on all hosts."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator

from raycluster.connect import Connected, Fleet
from raycluster.errors import CommandError, HostError, RayclusterError, UsageError
from raycluster.observe import observe
from raycluster.plan import roles
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec, ResolvedHost

_REPLICA = "^:actor_name:ServeReplica:"
"""What Ray writes first into the output files of a replica's process, which its engine shares."""

PARTING_S = 5.0
"""Seconds for all readers to end what they started on the nodes."""


def named_host(spec: ClusterSpec, name: str) -> ResolvedHost:
    """Return the host of this name. Raises UsageError."""
    for host in spec.hosts:
        if host.name == name:
            return host
    known = ", ".join(h.name for h in spec.hosts)
    raise UsageError(f"{name!r} is no host of this cluster", hint=f"one of {known}")


def role_of(spec: ClusterSpec, name: str) -> tuple[ResolvedHost, str]:
    """Return where a process runs and its role, for HOST, ROLE or HOST/ROLE. Raises UsageError.

    A host's name stands for its node of Ray, a role's for the first host that has it.
    """
    place, _, role = name.partition("/")
    if role:
        host = named_host(spec, place)
        if role in roles(spec, host):
            return host, role
        known = ", ".join(f"{place}/{each}" for each in roles(spec, host))
        raise UsageError(f"{place} runs no {role!r}", hint=f"one of {known}")
    for host in spec.hosts:
        if name != host.name and name in roles(spec, host) and name not in RAY_ROLES:
            return host, name
    host = named_host(spec, name)
    return host, host.role


def check_up(spec: ClusterSpec) -> None:
    """Raise HostError where the head can be seen and holds nothing of the cluster; never asks."""
    with Fleet(spec.cluster.name, 1) as fleet:
        head = spec.hosts[0]
        found = fleet.reach([head], lambda connected: connected.runtime.observe())[head.name]
    if found == ():
        raise HostError("nothing of the cluster is here", where=head.name, hint="raycluster up")


def app_logs(spec: ClusterSpec, fleet: Fleet, *, follow: bool, tail: int) -> Iterator[bytes]:
    """Yield lines of the replicas' logs on every running node, each with its host's name."""
    state = observe(spec, fleet)
    hosts = [h for h in spec.hosts if state.runs(h)]
    if not hosts:
        raise HostError("no node is running", where=spec.cluster.name, hint="raycluster up")
    readers = [_Reader(fleet[host.name], _script(follow=follow, tail=tail)) for host in hosts]
    # Ctrl-C inside the `get` of a `queue.Queue` can leave its lock taken, and every reader waiting
    lines: queue.SimpleQueue[bytes | RayclusterError | None] = queue.SimpleQueue()
    threads = [threading.Thread(target=r.read, args=(lines,), daemon=True) for r in readers]
    for thread in threads:
        thread.start()
    try:
        yield from _merged(lines, len(readers))
    finally:
        for reader in readers:
            reader.over.set()
        end = time.monotonic() + PARTING_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


def _merged(
    lines: queue.SimpleQueue[bytes | RayclusterError | None], readers: int
) -> Iterator[bytes]:
    while readers:
        line = lines.get()
        if line is None:
            readers -= 1
        elif isinstance(line, RayclusterError):
            raise line
        else:
            yield line


class _Reader:
    """Reads one node's logs until it is told that this is over; then the far side ends as well."""

    def __init__(self, connected: Connected, script: str) -> None:
        self._host = connected.host
        self._stream = connected.runtime.inside(connected.host.role).stream(("sh", "-c", script))
        self.over = threading.Event()

    def read(self, lines: queue.SimpleQueue[bytes | RayclusterError | None]) -> None:
        """Put every line, with the host's name, into `lines`; an error or None comes last."""
        rest = b""
        try:
            for _, chunk in self._stream:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line and not line.startswith((b":job_id:", b":actor_name:")):
                        lines.put(f"{self._host.name}  ".encode() + line + b"\n")
                if self.over.is_set():
                    break
        except CommandError:
            pass  # the node holds no replica's log
        except RayclusterError as error:
            lines.put(error)
        finally:
            if isinstance(self._stream, Generator):
                self._stream.close()
        lines.put(None)


def _script(*, follow: bool, tail: int) -> str:
    """Return a shell script for the newest session's logs, under Ray's temporary folder.

    When it follows, it writes an empty line every second, so that its reader can notice the end.
    """
    find = (
        'cd "${RAY_TMPDIR:-/tmp}/ray/session_latest/logs" 2>/dev/null || exit 1; '
        f"files=$(grep -lm1 '{_REPLICA}' worker-*.err worker-*.out 2>/dev/null); "
        '[ -n "$files" ] || exit 0; '
    )
    if not follow:
        return f"{find} exec tail -q -n {tail} $files 2>/dev/null"
    return f"{find} tail -q -n {tail} -F $files 2>/dev/null & while sleep 1; do echo; done"
