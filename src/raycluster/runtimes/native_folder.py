"""Runs on the hosts: a cluster's folder, for each host its own, also where hosts share a home.

The first host has `~/.raycluster/CLUSTER`, in which a link notes that; others that find it so have
`~/.raycluster/CLUSTER@HOST`. A link is made whole or not at all, over NFS too.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raycluster.runtimes.native_place import Place, home
from raycluster.runtimes.native_processes import UNREAD, alive, boot_id

T = TypeVar("T")

OF_HOST = ".host"  # a link in the cluster's folder, to the name of the host that has it
OTHER_TEMP = ".temp"  # a link in the cluster's folder
TRIES = 9


def place(ask: dict[str, Any]) -> Place:
    """Return the place of `ask["cluster"]`, under `ask["root"]` where that is not empty."""
    root = Path(os.path.normpath(home() / ask["root"])) if ask["root"] else _root(ask["cluster"])
    owner = "{}@{}".format(ask["cluster"], root)
    return Place(root, owner, _noted(root) or _temp(zlib.crc32(f"{os.geteuid()} {owner}".encode())))


def _temp(number: int) -> Path:
    return Path(f"/tmp/rc-{number:08x}")  # noqa: S108 - made 0700 and checked


def _noted(root: Path) -> Path | None:
    try:
        target = os.readlink(str(root / OTHER_TEMP))  # noqa: PTH115 - new in Python 3.9
    except OSError:
        return None
    return Path(target) if re.fullmatch("/tmp/rc-[0-9a-f]{8}", target) else None  # noqa: S108


def is_own(folder: Path) -> bool:
    """Tell whether it is ours: in /tmp anybody may have made a thing of that name."""
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def settle(at: Place) -> None:
    """Make and note another temporary folder where somebody else holds the name of ours."""
    if not os.path.lexists(str(at.temp)) or is_own(at.temp):
        return
    while True:
        other = _temp(int.from_bytes(os.urandom(4), "big"))
        with contextlib.suppress(FileExistsError):
            other.mkdir(mode=0o700)
            break
    at.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (at.root / OTHER_TEMP).unlink()
    (at.root / OTHER_TEMP).symlink_to(other)


def machine_id() -> str:
    """Return the number that this installation was given, "" where it has none."""
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text().strip()
    return ""


def this_host() -> str:
    """Return what tells this host from others; clones have one number, and not one name."""
    name = re.sub("[^A-Za-z0-9.-]", "-", os.uname().nodename)[:64]
    return f"{name}-{zlib.crc32(machine_id().encode()):08x}"


def _root(cluster: str) -> Path:
    first = home() / ".raycluster" / cluster
    own = first.with_name(f"{cluster}@{this_host()}")
    if own.exists() or not (_holder(first) in (None, this_host()) or _runs_here(first)):
        return own
    return first


def _holder(root: Path) -> str | None:
    """Return which host has a folder, None where that was not noted."""
    try:
        return os.readlink(str(root / OF_HOST))  # noqa: PTH115 - new in Python 3.9
    except OSError:
        return None


def _runs_here(root: Path) -> bool:
    """Tell whether a process of the folder runs on this host, whatever it was called then."""
    for file in root.glob("roles/*/state.json"):
        with contextlib.suppress(*UNREAD):
            state = json.loads(file.read_text())
            if state["boot"] == boot_id() and alive(state["supervisor"]):
                return True
    return False


def adopt(ask: dict[str, Any]) -> None:
    """Note that a folder is this host's where its processes run here and nothing says so yet."""
    root = place(ask).root
    if not ask["root"] and _holder(root) is None and _runs_here(root):
        with contextlib.suppress(OSError):
            (root / OF_HOST).symlink_to(this_host())


def claim(ask: dict[str, Any]) -> Place:
    """Make the cluster's folder on this host, note whose it is, and return the place."""

    def attempt() -> Place | None:
        at = place(ask)
        at.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        at.root.chmod(0o700)
        return at if ask["root"] or _note(at.root) else None

    while True:  # another host may have been first: its folder is not found a second time
        at = again(attempt)
        if at:
            return at


def _note(root: Path) -> bool:
    """Note that the folder is this host's; return False where it is another's by now."""
    mark = root / OF_HOST
    if _holder(root) == this_host():
        return True
    with contextlib.suppress(FileExistsError):
        mark.symlink_to(this_host())
        return True
    if not root.name.endswith("@" + this_host()) and not _runs_here(root):
        return False
    with contextlib.suppress(FileNotFoundError):
        mark.unlink()
    mark.symlink_to(this_host())
    return True


def again(work: Callable[[], T]) -> T:
    """Return what `work` does, also where another host takes an empty folder away meanwhile."""
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            return work()
    return work()
