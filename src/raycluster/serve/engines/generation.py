"""Generations: text that comes as it is made, stop strings, cancelling."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from raycluster.serve.engines.sampling import Sampler, Sampling

REPLACEMENT = "\ufffd"

MOST_PER_CHARACTER = 8
"""Tokens after which half a character is shown as it is."""

Decode = Callable[[list[int], bool], str]
"""Turns token ids into text; the second says whether special tokens are left out."""


@dataclass(frozen=True)
class Ask:
    """What to generate after `prompt` (token ids), until one of the ends or a `stop`.

    `ends` are the model's own, `stop_ids` the request's.
    """

    prompt: Sequence[int]
    max_tokens: int
    min_tokens: int = 0
    ends: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def all_ends(self) -> tuple[int, ...]:
        """All tokens that end it."""
        return self.ends + self.stop_ids


@dataclass(frozen=True)
class Piece:
    """Text that is new, tokens made so far, and why it ended ("" while it has not)."""

    text: str
    tokens: int
    finish: str = ""
    reason: int | str | None = None


class Runner(Protocol):
    """Runs generations side by side; hands each token, or an error, to `deliver`."""

    def add(self, number: str, ask: Ask, sampler: Sampler) -> None:
        """Begin one; raises when it is broken."""
        ...

    def cancel(self, number: str) -> None:
        """End one that nobody waits for any more."""
        ...

    def check(self) -> None:
        """Raise when it cannot generate any more."""
        ...

    def close(self) -> None:
        """Take no more work."""
        ...


Deliver = Callable[[str, "int | BaseException"], None]


class Detokenizer:
    """Turns tokens into text that may be shown: no half characters, no (beginning of a) stop."""

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str], *, include_stop: bool = False
    ) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._include = include_stop
        self._ids: list[int] = []
        self._from = self._to = 0  # what was read last: the next text depends on no more
        self._held = ""
        self.stopped: str | None = None

    def add(self, token: int, *, may_stop: bool = True) -> str:
        """Return what can be shown now."""
        self._ids.append(token)
        self._held += self._new()
        found = [(at, s) for s in self._stop if may_stop and (at := self._held.find(s)) >= 0]
        if found:
            at, self.stopped = min(found)
            return self._held[: at + len(self.stopped) * self._include]
        return self._show(len(self._held) - self._held_back())

    def rest(self) -> str:
        """Return what was held back, at the end."""
        if self.stopped is not None:
            return ""
        self._held += self._new(whole=True)
        return self._show(len(self._held))

    def _new(self, *, whole: bool = False) -> str:
        before = self._decode(self._ids[self._from : self._to])
        now = self._decode(self._ids[self._from :])
        half = now.endswith(REPLACEMENT) and len(self._ids) - self._to < MOST_PER_CHARACTER
        if (half and not whole) or len(now) <= len(before):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return now[len(before) :]

    def _show(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _held_back(self) -> int:
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._held))
        ends = (n for n in range(longest, 0, -1) if self._begins_stop(self._held[-n:]))
        return next(ends, 0)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stop)


class Generator:
    """Streams what a runner generates."""

    def __init__(self, make: Callable[[Deliver], Runner], decode: Decode) -> None:
        self._decode = decode
        self._numbers = itertools.count()
        self._waiting: dict[
            str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[int | BaseException]]
        ] = {}
        self._runner = make(self._deliver)

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Yield the pieces, the last with its reason; closing the iterator ends the generation."""
        number, tokens = str(next(self._numbers)), asyncio.Queue[int | BaseException]()
        sampler = Sampler(ask.sampling, ask.prompt, ask.all_ends, ask.min_tokens)
        self._waiting[number] = asyncio.get_running_loop(), tokens
        text = Detokenizer(
            lambda ids: self._decode(ids, ask.skip_special), ask.stop, include_stop=ask.include_stop
        )
        try:
            self._runner.add(number, ask, sampler)
            for made in itertools.count(1):
                token = await tokens.get()
                if error := sampler.error or (token if isinstance(token, BaseException) else None):
                    raise error
                assert isinstance(token, int)  # noqa: S101  # errors are raised
                piece = _piece(ask, text, token, made)
                if piece.text or piece.finish:
                    yield piece
                if piece.finish:
                    return
        finally:
            del self._waiting[number]
            self._runner.cancel(number)

    def check(self) -> None:
        """Raise when nothing can be generated any more."""
        self._runner.check()

    def close(self) -> None:
        """Take no more work."""
        self._runner.close()

    def _deliver(self, number: str, item: int | BaseException) -> None:
        if waits := self._waiting.get(number):
            loop, tokens = waits
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tokens.put_nowait, item)


def _piece(ask: Ask, text: Detokenizer, token: int, made: int) -> Piece:
    """Return what a token brings."""
    ended = token in ask.all_ends
    new = ""
    if not ended or ask.include_stop:
        new = text.add(token, may_stop=made > ask.min_tokens)
    if text.stopped is not None:
        return Piece(new, made, "stop", text.stopped)
    if ended:
        return Piece(new + text.rest(), made, "stop", None if token in ask.ends else token)
    if made >= ask.max_tokens:
        return Piece(new + text.rest(), made, "length")
    return Piece(new, made)
