"""Runs an engine's server for a replica: nothing of it outlives either of them.

    python -I -S keeper.py PIPE -- ARGV...

`PIPE` is the number of an inherited pipe's reading end. Its end of file says that the replica is
gone, however it went, or wants the server ended, and a byte that the server answers now. The
server's leader is killed at once then, so that connections to it break instead of being answered
with errors, and what it had started is asked to end, and killed a little later. The same happens
when one of the engine's own processes ends after that byte: what is left would only answer errors.
Exits as the leader did: with its code, or 128 and the number of its signal. Needs nothing but Linux
and the standard library.

It is two processes: Ray kills the children of a replica that it ends by force, and nobody else. So
the first only waits for the second, which keeps the server.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

ASKED_S = 5.0
"""Seconds for the leader's own processes to end before they are killed."""

LOOK_S = 1.0
"""Seconds between looks for new processes of the engine."""

ENGINE = "VLLM::EngineCor"
"""What the names of processes begin with without which the leader is of no use; Linux keeps 15
letters."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the server until it, or the replica, ends; return its exit code."""
    pipe, argv = int(sys.argv[1]), sys.argv[3:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides
    if keeper := os.fork():
        return _code(os.waitpid(keeper, 0)[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # its processes become ours when it dies
    leader = os.fork()
    if leader == 0:
        _become(libc, pipe, argv)
    if not _ended_by_itself(leader, pipe):
        with suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)
    _, status = os.waitpid(leader, 0)
    _end_all()
    return _code(status)


def _code(status: int) -> int:
    """Return a process's end as a shell tells it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _ended_by_itself(leader: int, pipe: int) -> bool:
    """Wait until the leader has ended, or should be: True or False."""
    watched = os.pidfd_open(leader)
    ready, _, _ = select.select([pipe, watched], [], [])
    if watched in ready:
        return True
    if not os.read(pipe, 1):
        return False
    engines: dict[int, int] = {}
    while True:
        for pid in _children(leader) - engines.keys():
            if _name(pid).startswith(ENGINE):
                with suppress(ProcessLookupError):
                    engines[pid] = os.pidfd_open(pid)
        ready, _, _ = select.select([pipe, watched, *engines.values()], [], [], LOOK_S)
        if watched in ready:
            return True
        if pipe in ready:
            return False
        if dead := [pid for pid, end in engines.items() if end in ready]:
            sys.stderr.write(f"raycluster: process {dead[0]} of the engine has exited\n")
            return False


def _children(pid: int) -> set[int]:
    """Return the processes that one has started."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found |= {int(child) for child in children.read_text().split()}
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _become(libc: ctypes.CDLL, pipe: int, argv: list[str]) -> None:
    """Become the server, which dies with its keeper."""
    keeper = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    os.close(pipe)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"OSError: {error}\n")
        os._exit(127)


def _end_all() -> None:
    """End every process that is below this one now, adopted ones included."""
    end = time.monotonic() + ASKED_S
    asked: set[int] = set()
    while left := _below():
        late = time.monotonic() > end
        for pid in left - (set() if late else asked):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def _below() -> set[int]:
    """Return the processes below this one; those that only wait to be reaped are none."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                parents[int(name.split()[0])] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    sys.exit(main())
