"""Runs on the hosts: finds a cluster's processes, and no others, and ends them.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from raycluster.hosts.runtimes.native_place import Place, ProblemError

SUPERVISED_LIMIT = 14.0  # seconds; longer than a supervisor's patience with its child
ORPHANED_LIMIT, KILL_LIMIT = 3.0, 5.0


UNREAD = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What comes of reading JSON that may be damaged."""


class ProcessEntry(NamedTuple):
    """A process: its parent, its session, and when it began in ticks since boot."""

    pid: int
    parent: int
    session: int
    began: int
    zombie: bool


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def alive(mark: list[int] | None) -> bool:
    if not mark:
        return False
    seen = _look(mark[0])
    return seen is not None and seen.began == mark[1] and not seen.zombie


def start_time(pid: int) -> int:
    """Return when a process began, in ticks since boot, or 0 when there is none."""
    seen = _look(pid)
    return seen.began if seen else 0


def _look(pid: int) -> ProcessEntry | None:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - hot: once per process
            part = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessEntry(pid, int(part[1]), int(part[3]), int(part[19]), part[0] == "Z")


def end(at: Place, role: str, *, orphans: bool = False) -> int:
    """End a cluster's processes on this host; return how many there were.

    Where a supervisor is among them it ends its own, unless they are `orphans` of one that is gone.
    """
    known = _ours(at, role)
    semaphores = _semaphores(known)
    marked = (p for p in known if b"\0RAYCLUSTER_SUPERVISOR=1\0" in _environ(p))
    supervisors = [] if orphans else list(marked)
    _signal(supervisors or list(known), signal.SIGTERM)
    patience = time.monotonic() + (SUPERVISED_LIMIT if supervisors else ORPHANED_LIMIT)
    left = known
    while left and time.monotonic() < patience:
        time.sleep(0.05)
        left = _still(at, role, known)
    patience = time.monotonic() + KILL_LIMIT
    while left:
        if time.monotonic() > patience:
            names = ", ".join(f"{pid} ({title(pid)})" for pid in left)
            raise ProblemError("cannot end: " + names, "stop them by hand, then run it again")
        _signal(list(left), signal.SIGKILL)
        time.sleep(0.05)
        left = _still(at, role, known)
    for file in semaphores:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    return len(known)


def _semaphores(pids: Iterable[int]) -> list[Path]:
    """Return the semaphores of Python's multiprocessing that these processes have open.

    Their resource tracker deletes them, unless it is killed too. Only a number tells which they
    are: the name under which the C library makes and maps one is another.
    """
    files = {}
    for file in Path("/dev/shm").glob("sem.mp-*"):  # noqa: S108
        with contextlib.suppress(FileNotFoundError):
            found = file.lstat()  # others lay theirs there too, and links
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                files[str(found.st_ino)] = file
    mapped = set()
    for pid in pids if files else ():
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            mapped |= {line.split()[4] for line in lines if "/dev/shm/" in line}  # noqa: S108
    return [file for number, file in files.items() if number in mapped]


def open_sockets(at: Place) -> list[int]:
    """Return the inodes of the sockets that a cluster's processes on this host have open."""
    inodes = set()
    for pid in _ours(at, ""):
        with contextlib.suppress(OSError):  # it has ended
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, number = os.readlink(str(file)).partition(":")  # noqa: PTH115 - 3.8
                    if kind == "socket":
                        inodes.add(int(number.strip("[]")))
    return sorted(inodes)


def _still(at: Place, role: str, known: dict[int, int]) -> dict[int, int]:
    """Add to `known` what is new, and return what of it is alive; values tell when it began."""
    known.update(_ours(at, role))
    return {pid: began for pid, began in known.items() if alive([pid, began])}


def _ours(at: Place, role: str) -> dict[int, int]:
    """Return the role's processes, or all of the cluster's: pid -> when it began.

    The environment tells them, but Ray's agents, dashboards and workers overwrite theirs with a
    title (setproctitle), so the session that a supervisor noted, and descent, tell as well.
    """
    table = _table()
    sessions = _sessions(at, role)
    ours = {pid for pid, seen in table.items() if _marked(at, role, pid)}
    ours |= {seen.pid for seen in table.values() if _within(seen, sessions, table)}
    grew = True
    while grew:
        more = {pid for pid, seen in table.items() if seen.parent in ours} - ours
        ours |= more
        grew = bool(more)
    return {pid: table[pid].began for pid in ours - _ancestors(table) if not table[pid].zombie}


def _table() -> dict[int, ProcessEntry]:
    me = os.geteuid()
    table = {}
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    seen = _look(int(entry.name)) if entry.stat().st_uid == me else None
                    if seen:
                        table[seen.pid] = seen
    return table


def _ancestors(table: dict[int, ProcessEntry]) -> set[int]:
    pid, line = os.getpid(), set()
    while pid in table and pid not in line:
        line.add(pid)
        pid = table[pid].parent
    return line


def _environ(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return b"\0" + file.read() + b"\0"
    except OSError:
        return b""


def _marked(at: Place, role: str, pid: int) -> bool:
    environ = _environ(pid)
    ours = f"\0RAYCLUSTER_OWNER={at.owner}\0".encode() in environ
    return ours and (not role or f"\0RAYCLUSTER_ROLE={role}\0".encode() in environ)


def _sessions(at: Place, role: str) -> dict[int, int]:
    """Return the sessions that the supervisors noted, with when their leaders began."""
    noted = {}
    for file in (at.root / "roles").glob("{}/state.json".format(role or "*")):
        with contextlib.suppress(*UNREAD):
            state = json.loads(file.read_text())
            if state["boot"] == boot_id() and state["session"]:
                noted[int(state["session"][0])] = int(state["session"][1])
    return noted


def _within(seen: ProcessEntry, sessions: dict[int, int], table: dict[int, ProcessEntry]) -> bool:
    """Tell whether a process is in a noted session, whose number may have been given anew."""
    began = sessions.get(seen.session)
    if began is None or seen.began < began:
        return False
    leader = table.get(seen.session)
    return leader is None or leader.began == began


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
