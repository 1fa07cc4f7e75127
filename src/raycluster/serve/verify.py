"""Compares files with the digests that they should have, and remembers what was compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

AT_ONCE = 4
CHUNK = 8 << 20


class VerifiedFiles:
    """What was found right: path -> size, time of change, digest; with what else is worth keeping.

    A file with the same size and time is not read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.kept: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.kept = {}

    def right(self, path: Path, size: int, digest: str, *, again: bool) -> bool:
        """Tell whether the file is whole; `again` reads it in any case."""
        real = path.resolve()
        stat = real.stat()
        seen = [stat.st_size, stat.st_mtime_ns, digest]
        known = self.kept.setdefault("right", {})
        if not again and known.get(str(real)) == seen:
            return True
        if stat.st_size != size or (digest and hashed(real, digest) != digest):
            known.pop(str(real), None)
            return False
        known[str(real)] = seen
        return True

    def save(self) -> None:
        """Write it whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        new.write_text(json.dumps(self.kept))
        new.replace(self._path)


def wrong(
    record: VerifiedFiles,
    files: Iterable[tuple[str, int, str]],
    paths: Mapping[str, Path],
    *,
    again: bool,
) -> list[str]:
    """Return the names whose file differs from its size and digest."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = pool.map(lambda f: (f[0], record.right(paths[f[0]], f[1], f[2], again=again)), files)
        return [name for name, right in told if not right]


def hashed(path: Path, like: str = "") -> str:
    """Return the file's SHA-256, or git's SHA-1 of it where `like` is one of those."""
    if len(like) == 40:  # hexadecimal digits
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
