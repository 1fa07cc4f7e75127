"""Reads several sources at once, and hands their lines out one by one, each whole.

A source that fails or ends is told of, and ends nothing else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from raycluster.core.errors import RayclusterError

PARTING_S = 2.0
"""Seconds for all readers to end what they started on the nodes."""


@dataclass(frozen=True)
class LogRequest:
    """How much of each source: `tail` in lines from the end, `since` in seconds before now."""

    follow: bool = False
    tail: int | None = None
    since: float | None = None


@dataclass(frozen=True)
class Line:
    """A line of a source, or with `note` what a person should know of the source."""

    label: str
    text: bytes
    note: bool = False


class Source(Protocol):
    """One thing that lines come from; `label` names it where it fails as a whole."""

    @property
    def label(self) -> str: ...

    def lines(self, asked: LogRequest) -> Iterator[Line | None]:
        """Yield lines; None where there is none yet, so that its reader may end it."""


Told = tuple["_Reader", Line | RayclusterError | None]


def read(
    sources: Sequence[Source], asked: LogRequest, tell: Callable[[str], None]
) -> Generator[Line, None, None]:
    """Yield the lines of all sources: as they come where they are followed, else one by one.

    `tell` takes what is wrong with one of several. Raises the error of a source that is the only
    one, and of the first where all of them failed.
    """
    readers = [_Reader(source) for source in sources]
    # Ctrl-C inside the `get` of a `queue.Queue` can leave its lock taken, and every reader waiting
    shared: queue.SimpleQueue[Told] = queue.SimpleQueue()
    for reader in readers:
        reader.begin(asked, shared if asked.follow else queue.SimpleQueue())
    failed: list[RayclusterError] = []
    try:
        turns = [readers] if asked.follow else [[reader] for reader in readers]
        for turn in turns:
            open_ = len(turn)
            while open_:
                reader, told = turn[0].lines.get()
                if isinstance(told, Line):
                    yield told
                    continue
                open_ -= 1
                if isinstance(told, RayclusterError):
                    failed.append(told)
                    if len(readers) > 1:
                        tell(f"{reader.source.label}: {told.what}")
                elif asked.follow and len(readers) > 1:
                    tell(f"{reader.source.label}: end of its log")
        if failed and len(failed) == len(readers):
            raise failed[0]
    finally:
        _part(readers)


def _part(readers: Sequence[_Reader]) -> None:
    for reader in readers:
        reader.over.set()
    end = time.monotonic() + PARTING_S
    for reader in readers:
        reader.thread.join(max(0.0, end - time.monotonic()))


class _Reader:
    """Reads one source in a thread until it is told that this is over."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.over = threading.Event()
        self.lines: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def begin(self, asked: LogRequest, lines: queue.SimpleQueue[Told]) -> None:
        self.lines, self._asked = lines, asked
        self.thread.start()

    def _read(self) -> None:
        last: RayclusterError | None = None
        lines = self.source.lines(self._asked)
        try:
            for line in lines:
                if self.over.is_set():
                    break
                if line is not None:
                    self.lines.put((self, line))
        except RayclusterError as error:
            last = error
        finally:
            if isinstance(lines, Generator):
                lines.close()
            self.lines.put((self, last))
