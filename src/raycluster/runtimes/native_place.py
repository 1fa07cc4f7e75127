"""Runs on the hosts: where a cluster's things are, and what a person has to know of a failure.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


STOPPED = "stopped"
"""The file in a role's folder that says that it shall not run, whatever else lies there."""


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
    digest = zlib.crc32(f"{os.geteuid()} {owner}".encode())
    return Place(root, owner, Path(f"/tmp/rc-{digest:08x}"))  # noqa: S108 - made 0700 and checked


def home() -> Path:
    """Return the user's home folder."""
    return Path.home()
