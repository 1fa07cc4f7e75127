"""Runs on the hosts: where a cluster's things are, and what a person has to know of a failure.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

OTHER_TEMP = ".temp"  # a link in the cluster's folder
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


STOPPED = "stopped"
"""The file in a role's folder that says that it must not run, whatever else lies there."""


class ProblemError(Exception):
    """What a person has to know, and their next step."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


class Place(NamedTuple):
    """Where a cluster's things are on this host."""

    root: Path
    owner: str
    temp: Path

    def role(self, name: str) -> Path:
        return self.root / "roles" / name


def place(ask: dict[str, Any]) -> Place:
    """Return the place of `ask["cluster"]`, under `ask["root"]` where that is not empty."""
    root = Path(os.path.normpath(home() / (ask["root"] or ".raycluster/" + ask["cluster"])))
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


def home() -> Path:
    """Return the user's home folder."""
    return Path.home()
