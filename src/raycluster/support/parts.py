"""What was gathered for the archive: files by path, what failed, and the secrets to take out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raycluster.core.errors import RayclusterError

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
