"""What the archive is made of, and how it is written: whole or not at all, for its owner alone."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from raycluster.core.errors import RayclusterError, UsageError


def refuse_existing(path: Path) -> None:
    """Raise UsageError where there is something already, or no folder to write in."""
    if path.exists() or path.is_symlink():
        raise UsageError("already exists", where=str(path), hint="add --force to replace it")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise UsageError where the file cannot be made."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("there is no such folder", where=str(folder))
    if path.is_dir():
        raise UsageError("is a folder; name a file", where=str(path))
    if not os.access(folder, os.W_OK):
        raise UsageError("cannot be written in", where=str(folder))


def write(path: Path, root: str, files: Mapping[str, bytes], *, when: float) -> int:
    """Write the files under `root` as .tar.gz; return its bytes. `when` is their time.

    Nothing is left where that fails. Raises UsageError.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{root}/{name}")
                info.size, info.mode, info.mtime = len(content), 0o600, int(when)
                tar.addfile(info, io.BytesIO(content))
        size = Path(temporary).stat().st_size
        Path(temporary).replace(path)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error
    else:
        temporary = None
        return size
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


FILE = 512 * 1024
"""Bytes of one file; of a larger one the end is kept."""
HOST = 8 * 1024 * 1024
"""Bytes of one host, before they are packed."""
ALL = 96 * 1024 * 1024
"""Bytes of all hosts."""


@dataclass
class ArchiveParts:
    """Files by their path in the archive; `limit` is for all of them, in bytes."""

    limit: int = HOST
    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    def add(self, path: str, content: bytes, *, limit: int = FILE) -> None:
        """Take a file, or its end from the beginning of a line on: half a secret is not found."""
        limit = max(0, min(limit, self.limit - self.size))
        if len(content) > limit:
            self.cut[path] = len(content)
            content = content[len(content) - limit :].partition(b"\n")[2]
        self.files[path] = content

    @contextmanager
    def trying(self, path: str) -> Iterator[None]:
        """Note what keeps a part from being gathered, and go on."""
        import httpx

        try:
            yield
        except (RayclusterError, httpx.HTTPError, OSError, ValueError, LookupError) as error:
            what = error.what if isinstance(error, RayclusterError) else str(error)
            self.problems[path] = what or type(error).__name__

    def take(self, other: ArchiveParts, folder: str) -> None:
        """Take all of another one's into a folder."""
        self.files |= {f"{folder}/{path}": data for path, data in other.files.items()}
        self.cut |= {f"{folder}/{path}": size for path, size in other.cut.items()}
        self.problems |= {f"{folder}/{path}": what for path, what in other.problems.items()}
        self.known |= other.known
