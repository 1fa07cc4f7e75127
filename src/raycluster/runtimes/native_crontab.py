"""Runs on the hosts: the line of the user's crontab that starts a cluster at boot.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raycluster.runtimes.native_place import SYSTEM_PATH, Place, ProblemError, home
from raycluster.runtimes.native_processes import title


def add_line(at: Place) -> str:
    """Add the line; return why the cluster will not start at boot all the same, or nothing."""
    parts = (sys.executable, str(at.root / "supervisor.py"), str(at.root))
    python, supervisor, root = (shlex.quote(part).replace("%", "\\%") for part in parts)
    line = f"@reboot {python} -I -S {supervisor} --all {root} {_mark(at)}".encode()
    try:
        with _locked():
            old = _read()
            others = [one for one in old if not one.endswith(_mark(at).encode())]
            if line not in old:
                _write([*others, line])
    except ProblemError as problem:
        return problem.what
    return "" if _cron_runs() else "cron does not run on this host"


def remove_line(at: Place) -> bool:
    """Take the line away and leave the others as they are; return whether it was there."""
    try:
        with _locked():
            old = _read()
            others = [one for one in old if not one.endswith(_mark(at).encode())]
            if others != old:
                _write(others)
            return others != old
    except ProblemError:
        return False  # what cannot be read was not written by us


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
    if done.returncode and b"no crontab" not in done.stderr.lower():
        raise ProblemError("crontab: " + done.stderr.decode().strip())
    return done.stdout.splitlines(True)


def _write(lines: list[bytes]) -> None:
    done = _crontab("-", b"".join(lines)) if lines else _crontab("-r")
    if done.returncode:
        raise ProblemError("crontab: " + done.stderr.decode().strip())


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
