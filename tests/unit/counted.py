"""Bytes that count how many of them are looked at or copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_work = 0


class Counted(bytes):
    """Counts what its methods go through; what they return counts as well."""

    def __add__(self, other: Any) -> Any:
        return _done(len(self) + len(other), bytes(self) + other)

    def __radd__(self, other: Any) -> Any:
        return _done(len(self) + len(other), other + bytes(self))

    def __contains__(self, other: Any) -> bool:
        return bool(_done(len(self), other in bytes(self)))

    def split(self, *args: Any) -> Any:
        return _done(len(self), bytes(self).split(*args))

    def splitlines(self, keepends: bool = False) -> Any:
        return _done(len(self), bytes(self).splitlines(keepends))

    def partition(self, sep: Any) -> Any:
        return _done(len(self), bytes(self).partition(sep))


def _done(size: int, result: Any) -> Any:
    global _work  # noqa: PLW0603  # the methods of bytes have nowhere else to count
    _work += size
    if isinstance(result, bytes):
        return Counted(result)
    return type(result)(map(Counted, result)) if isinstance(result, list | tuple) else result


@contextmanager
def worked() -> Iterator[Callable[[], int]]:
    """Yield a function that returns how many bytes were gone through since then."""
    before = _work
    yield lambda: _work - before
