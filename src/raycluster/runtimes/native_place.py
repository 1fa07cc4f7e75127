"""Runs on the hosts: what says where a cluster's things are, and what went wrong.

Standard library alone, Python 3.8.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

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


def home() -> Path:
    """Return the user's home folder."""
    return Path.home()
