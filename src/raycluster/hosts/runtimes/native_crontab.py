"""Runs on the hosts: the lines of the user's crontab that start a cluster's processes.

At boot, and every minute what should run and has lost its supervisor. A crontab is written only
after it was read: a failure of `crontab -l` is not an empty one.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raycluster.hosts.runtimes.native_place import SYSTEM_PATH, Place, ProblemError, home
from raycluster.hosts.runtimes.native_processes import title

NOTE = "crontab-lines"
"""The file under the root that is there since the lines were first written."""
NONE = re.compile(
    rb"((crontab: )?no crontab for [^\n]*"
    rb"|crontab: can't open '[^\n]*': No such file or directory)\n?",
    re.IGNORECASE,
)
"""What `crontab -l` says, and no more, where a user has none (the second: that of Busybox).

Whatever else is a failure.
"""


def add_lines(at: Place) -> str:
    """Add the lines; return why the cluster will not be started all the same, or nothing."""
    parts = (sys.executable, str(at.root / "supervisor.py"), str(at.root))
    python, supervisor, root = (shlex.quote(part).replace("%", "\\%") for part in parts)
    command = f"{python} -I -S {supervisor} --all {root} {_mark(at)}"
    lines = [f"{when} {command}".encode() for when in ("@reboot", "* * * * *")]
    try:
        with _locked():
            old = _read()
            if [line for line in old if _is_ours(at, line)] != lines:
                (at.root / NOTE).touch(mode=0o600)
                _write([*(line for line in old if not _is_ours(at, line)), *lines])
    except ProblemError as problem:
        return problem.what
    return _no_daemon()


def no_cron() -> str:
    """Return why lines would start nothing, or nothing; changes nothing."""
    try:
        _read()
    except ProblemError as problem:
        return problem.what
    return _no_daemon()


def _no_daemon() -> str:
    return "" if _cron_runs() else "cron does not run on this host"


def remove_lines(at: Place) -> bool:
    """Take the lines away and leave the others as they are; return whether they were there.

    Raises ProblemError where they were written and the crontab cannot be read or written now.
    """
    try:
        with _locked():
            old = _read()
            others = [line for line in old if not _is_ours(at, line)]
            if others != old:
                _write(others)
            return others != old
    except ProblemError as problem:
        if not (at.root / NOTE).exists():
            return False  # what cannot be read was not written by us
        hint = f"run it again, or remove the lines by hand (crontab -e): {_mark(at).strip()}"
        raise ProblemError(problem.what, hint) from None


def _is_ours(at: Place, line: bytes) -> bool:
    return line.endswith(_mark(at).encode())


def _mark(at: Place) -> str:
    return "# raycluster:{}\n".format(at.owner.replace("%", "\\%"))


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other clusters of this user away; a folder that others can open they could hold too."""
    import fcntl

    folder = home() / ".raycluster"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    held = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
        with suppress(OSError):
            folder.rmdir()  # only where it is empty


def _read() -> list[bytes]:
    done = _crontab("-l")
    if done.returncode and not (NONE.fullmatch(done.stderr) and not done.stdout):
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ProblemError(f"crontab: {said or f'exited with status {done.returncode}'}")
    return done.stdout.splitlines(True)


def _write(lines: list[bytes]) -> None:
    done = _crontab("-", b"".join(lines)) if lines else _crontab("-r")
    if done.returncode:
        raise ProblemError("crontab: " + done.stderr.decode("utf-8", "replace").strip())


def _crontab(option: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("crontab", path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)
    if not program:
        raise ProblemError("no crontab on this host")
    env = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        [program, option], input=content, env=env, capture_output=True, check=False
    )


def _cron_runs() -> bool:
    names = {"cron", "crond"}
    return any(title(int(each.name)) in names for each in Path("/proc").glob("[0-9]*"))
