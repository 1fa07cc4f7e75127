"""Which tunnels are open on this machine: a file for each, locked while its process lives."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from raycluster.core.errors import RecordError
from raycluster.core.stored_json import MOST, decode
from raycluster.tunnel.ports import Forward


@dataclass(frozen=True)
class Opened:
    """An open tunnel: whose, to where, since when (ISO 8601), and its URLs by name."""

    cluster: str
    head: str
    pid: int
    since: str
    urls: dict[str, str]


def folder() -> Path:
    """Return where the user's tunnels are noted: a place that a restart of the machine empties."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own and Path(own).is_dir():
        return Path(own) / "raycluster"
    return Path(tempfile.gettempdir()) / f"raycluster-{os.getuid()}"


@contextmanager
def noted(cluster: str, head: str, forwards: Sequence[Forward]) -> Iterator[None]:
    """Note a tunnel while it is open; where that cannot be written, it is not noted."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    urls = {forward.name: forward.address for forward in forwards}
    content = json.dumps(asdict(Opened(cluster, head, os.getpid(), since, urls)))
    try:
        path = _own_folder() / f"tunnel-{os.getpid()}.json"
        file = path.open("w", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _own_folder() -> Path:
    """Make the folder, and refuse one that another user made. Raises OSError."""
    path = folder()
    path.mkdir(mode=0o700, exist_ok=True)
    if not _is_own(path):
        raise PermissionError(f"{path} has the wrong owner or permissions")
    return path


def _is_own(path: Path) -> bool:
    there = path.lstat()
    return there.st_uid == os.getuid() and not there.st_mode & 0o022 and not path.is_symlink()


def opened(cluster: str, head: str) -> tuple[Opened, ...]:
    """Return the open tunnels to a cluster's head; what a killed one left behind is removed."""
    found: list[Opened] = []
    with suppress(OSError):
        path = folder()
        for file in sorted(path.glob("tunnel-*.json")) if _is_own(path) else ():
            if (tunnel := _read(file)) and (tunnel.cluster, tunnel.head) == (cluster, head):
                found.append(tunnel)
    return tuple(found)


def _read(path: Path) -> Opened | None:
    with suppress(OSError, RecordError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its process lives
            return decode(file.read(MOST + 1), Opened, what=str(path))
        if file.read(1):  # what is empty is about to be locked
            path.unlink()
    return None
