"""Reads back what this process and its children wrote to standard output and error."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST = 256 * 1024


class Capture:
    """Remembers where the files behind file descriptors 1 and 2 end now.

    Ray gives every worker process log files of its own; child processes inherit them. Where the
    descriptors are no files (a pipe, a terminal) nothing can be read back.
    """

    def __init__(self) -> None:
        self._ends = {path: path.stat().st_size for path in map(_file_behind, (1, 2)) if path}

    def text(self) -> str:
        """Return what was written since, standard output first; at most 256 KiB of each."""
        return "\n".join(_read_from(path, end) for path, end in self._ends.items())


def _file_behind(descriptor: int) -> Path | None:
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return path if path.is_file() else None
    except OSError:
        return None


def _read_from(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - MOST))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
