"""How often a model's engine has died on this node: one file for each replica, in one folder.

A replica that serves keeps a file `alive-...`, which it touches whenever its engine passes a
check, and removes at a proper end. A failure makes it `died-...`, whose time stands still. The
folder belongs to one deployment of one model and outlives the replica's process, whoever ends that.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WINDOW_S = 600.0
"""Deaths longer ago do not count: an engine that ran well for so long is tried again."""

MOST = 3
INCIDENT_S = 10.0
"""Several replicas that die so close to each other died of one thing, and count once."""

FRESH_S = 60.0
"""A replica that vanished and was checked so shortly before did not end on purpose.

Serve checks every 5 s until it ends a replica, and kills one only minutes after that.
"""


@dataclass(frozen=True)
class EngineFailure:
    """When an engine died (seconds since the epoch) and why, as far as is known."""

    at: float
    cause: str


def incidents(failures: Sequence[EngineFailure], now: float) -> tuple[EngineFailure, ...]:
    """Return the failures that count, oldest first, of those close to each other only the first."""
    recent = sorted((d for d in failures if now - d.at < WINDOW_S), key=lambda d: d.at)
    return tuple(
        failure
        for at, failure in enumerate(recent)
        if at == 0 or failure.at - recent[at - 1].at > INCIDENT_S
    )


def verdict(failures: Sequence[EngineFailure], now: float) -> str:
    """Return why the engine must not be tried again now, or ""."""
    counted = incidents(failures, now)
    if len(counted) < MOST:
        return ""
    minutes = WINDOW_S / 60
    told = f"vLLM died {len(counted)} times within {minutes:.0f} minutes on this node"
    return f"{told}; the last time: {counted[-1].cause}"


class Records:
    """The folder of one deployment; `node` tells this life of the node from the one before."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder
        self._mine = f"{node[:16]}-{os.getpid()}-{_started(os.getpid())}"
        self._node = node[:16]

    def failures(self) -> tuple[EngineFailure, ...]:
        """Return the failures on record, those of vanished replicas included; drop what is old."""
        now = time.time()
        self._folder.mkdir(parents=True, exist_ok=True)
        found = []
        for path in sorted(self._folder.iterdir()):
            with suppress(OSError):  # another replica may have been quicker
                if failure := self._judge(path, now):
                    found.append(failure)
        return tuple(found)

    def _judge(self, path: Path, now: float) -> EngineFailure | None:
        """Return the failure that the file tells of; make an abandoned file one or remove it."""
        kind, _, owner = path.name.partition("-")
        at = path.stat().st_mtime
        if kind == "died" and now - at < WINDOW_S:
            return EngineFailure(at, path.read_text() or "its process disappeared")
        if kind == "alive" and _lives(owner):
            return None
        if kind == "alive" and owner.startswith(self._node) and now - at < FRESH_S:
            path.rename(path.with_name(f"died-{owner}"))
            return EngineFailure(at, "its process disappeared (probably out of memory)")
        path.unlink()
        return None

    def alive(self) -> None:
        """Say that this replica's engine is well."""
        (self._folder / f"alive-{self._mine}").touch()

    def died(self, cause: str) -> None:
        """Say that this replica's engine is dead; the first cause stays."""
        died = self._folder / f"died-{self._mine}"
        if not died.exists():
            died.write_text(cause)
        self.ended()

    def ended(self) -> None:
        """Say that this replica ends on purpose; a failure that was told stays."""
        (self._folder / f"alive-{self._mine}").unlink(missing_ok=True)


def folder(root: str, told: object) -> Path:
    """Return the folder, below the cluster's own, of the deployment whose arguments are `told`."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return Path(root) / "run" / "engines" / digest


def _lives(owner: str) -> bool:
    _, pid, started = owner.split("-")
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return when the process started, in the kernel's ticks, or "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
