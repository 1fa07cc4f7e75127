"""Runs on the hosts: tries what a shell cannot of what the native runtime will do there.

Each thing that is wrong is told with its cure; what was made for a trial is removed. Standard
library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from raycluster.hosts.runtimes.native_place import home, place

PIECE = 1 << 20  # bytes that are written on trial
LEAST_TASKS = 2048  # processes and threads; a node of Ray with an engine has some hundreds
INDEX_S = 10.0
MODULES = ("ctypes", "fcntl", "json", "pwd", "select", "shutil", "signal", "socket", "subprocess")
"""What the supervisor and the programs that are sent take from the standard library."""
INDEX_SETTINGS = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"),
    *("UV_CONFIG_FILE", "UV_NO_INDEX", "UV_OFFLINE", "PIP_INDEX_URL", "PIP_FIND_LINKS"),
)
_FULL = "check the user's quota and the disk: `quota`, `df -h`"
_CURES = {
    errno.EDQUOT: _FULL,
    errno.ENOSPC: _FULL,
    errno.ENOLCK: "use a file system with locks (NFS with lockd), or set `folder` to a local disk",
}
LIMITS = "raise it in /etc/security/limits.conf or for the user's slice, and log in again"


class Wrong(NamedTuple):
    """Something that keeps the cluster from working on this host, and the cure."""

    what: str
    hint: str


def needs(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell what is wrong; `ask` has the ports that need a right, and where packages come from."""
    at = place(ask)
    wrong = [*_modules(), *_limits(), *_ports(ask["ports"])]
    if not wrong:
        wrong += _folder(at.root)
    packages = f"{home()}/.local/bin:{at.root}/uv/bin"
    return {"wrong": [*wrong, *_packages(ask["indexes"], packages)]}


def _modules() -> Iterator[Wrong]:
    lacking = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            lacking.append(name)
    if lacking:
        what = "{} has no {}".format(sys.executable, ", ".join(lacking))
        yield Wrong(what, "install its complete standard library (apt install python3)")


def _folder(folder: Path) -> Iterator[Wrong]:
    """Write to the disk itself, lock and link, and keep rights, where the cluster's folder is."""
    while not folder.is_dir() and folder.parent != folder:
        folder = folder.parent
    made = ""
    try:
        made = tempfile.mkdtemp(prefix=".raycluster-", dir=str(folder))
        kept = _kept(Path(made))
    except OSError as error:
        hint = _CURES.get(error.errno or 0, "check the disk, or set `folder` in [runtime]")
        yield Wrong(
            f"files cannot be written, linked or locked in {folder}: {error.strerror}", hint
        )
        return
    finally:
        shutil.rmtree(made, ignore_errors=True)
    if not kept:
        hint = "set `folder` in [runtime] to a folder on a Unix file system"
        yield Wrong(f"the file system of {folder} does not store file owners and permissions", hint)


def _kept(made: Path) -> bool:
    """Tell whether a file keeps its owner and rights. Raises OSError for what cannot be done."""
    import fcntl

    file = made / "file"
    with file.open("wb") as out:
        out.write(bytes(PIECE))
        out.flush()
        os.fsync(out.fileno())  # a quota, and a full disk behind a cache, are told here
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.chmod(0o600)
    found = file.stat()
    (made / "link").symlink_to(file)
    file.replace(made / "moved")
    return stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.geteuid()


def _limits() -> Iterator[Wrong]:
    import resource

    def most(name: str) -> float:
        value = resource.getrlimit(getattr(resource, name))[1]
        return float("inf") if value == resource.RLIM_INFINITY else value

    left = _tasks_left()
    tasks = left if not os.geteuid() else min(left, most("RLIMIT_NPROC"))  # root has no such limit
    if tasks < LEAST_TASKS:
        what = f"only {tasks:.0f} more processes and threads may run, but {LEAST_TASKS} are needed"
        yield Wrong(f"{what} (ulimit -Hu, pids.max)", LIMITS)
    for name, flag, what in (
        ("RLIMIT_AS", "v", "the address space of a process is limited"),
        ("RLIMIT_CPU", "t", "the CPU time of a process is limited"),
        ("RLIMIT_FSIZE", "f", "the file size is limited"),
    ):
        if most(name) != float("inf"):
            yield Wrong(f"{what} (ulimit -H{flag}: {most(name):.0f})", LIMITS)


def _tasks_left() -> float:
    """Return how many tasks the control groups on the way to the root leave."""
    left = float("inf")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "pids" not in kinds.split(","):
                continue
            group = Path(f"/sys/fs/cgroup{'/pids' if kinds else ''}{path}")
            for each in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    now = int((each / "pids.current").read_text())
                    left = min(left, int((each / "pids.max").read_text()) - now)
    return left


def _ports(ports: list[int]) -> Iterator[Wrong]:
    """Try the ports for which a plain user needs a right."""
    for port in ports:
        try:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", port))
        except PermissionError:
            hint = (
                "set another port under [ports], or lower net.ipv4.ip_unprivileged_port_start there"
            )
            yield Wrong(f"the user may not listen on port {port}", hint)
        except OSError:
            pass  # who holds it is told elsewhere


def _packages(indexes: list[str], folders: str) -> Iterator[Wrong]:
    """Try where packages come from, and what installs them; nothing where none are to come."""
    if not indexes:
        return
    if not shutil.which("uv", path=os.environ.get("PATH", "") + f":{folders}"):
        for name in ("venv", "ensurepip"):
            try:
                importlib.import_module(name)
            except ImportError:
                what = f"uv is missing, and {sys.executable} has no {name} to install it"
                yield Wrong(what, "apt install python3-venv, or install uv on the host")
                return
    files = (home() / ".config/uv/uv.toml", Path("/etc/uv/uv.toml"))
    if any(map(os.environ.get, INDEX_SETTINGS)) or any(file.exists() for file in files):
        return  # where they come from is the host's own matter
    for index in indexes:
        if said := _unreached(index):
            hint = (
                "give the host internet access (https_proxy), or set [runtime] python to an "
                "installed Python"
            )
            yield Wrong(f"the package index cannot be reached: {index}: {said}", hint)


def _unreached(index: str) -> str:
    """Return why an index does not answer; one that refuses a request does."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(index, timeout=INDEX_S).close()  # noqa: S310 - https, and ours
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""
