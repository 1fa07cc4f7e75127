"""Iterators that are closed whatever happens."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ended(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yield the iterator and close it at the end, also when Ctrl-C came between two items."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()
