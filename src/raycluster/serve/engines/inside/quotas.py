"""What keys have used of their limits, here and on other replicas, and whose turn it is.

It stands beside `inside` in the process of vLLM's server, whose Python may be another one than the
replica's: it imports the standard library alone.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from typing import Protocol

MINUTE, DAY = 60, 86_400
SPAN = {MINUTE: "minute", DAY: "day"}

UNTOLD = 1000
"""Tokens that a request without a maximum of its own is expected to generate."""

BYTES_PER_TOKEN = 4
"""Of a body, until its prompt has been read."""

BUSY_S = 5
"""Seconds after which to come back when running requests may use up what is left."""

FRESH_S = 10.0
"""Seconds for which it counts what the running requests of another replica are expected to use."""

MOST_OWNERS = 1000
OTHERS, ALL = "other", ""

PRIORITIES = {"high": -1, "normal": 0, "low": 1}
CLASS = 1 << 48
"""The distance between the turns of two priorities."""

_WORD = re.compile(r"(tokens_per_minute|tokens_per_day|requests_per_minute)=([0-9]{1,15})")
_CLASS = re.compile(r"priority=(high|normal|low)")


@dataclass(frozen=True)
class Limits:
    """What a key may use, where None is all there is, and which requests go before others."""

    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    requests_per_minute: int | None = None
    priority: int = 0

    @property
    def tokens(self) -> bool:
        """Whether tokens are limited."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return self.tokens or self.requests_per_minute is not None


def limits_of(text: str) -> Limits:
    """Return the limits that the gateway's header tells; what is unknown is left out."""
    chosen = _CLASS.search(text)
    numbers = {name: int(value) for name, value in _WORD.findall(text)}
    return Limits(**numbers, priority=PRIORITIES[chosen[1]] if chosen else 0)


@dataclass
class Used:
    """What a key has used in a minute and a day, by their numbers since 1970.

    `held` is what its running requests are expected to use beyond that.
    """

    minute: int = 0
    tokens: int = 0
    requests: int = 0
    day: int = 0
    day_tokens: int = 0
    held: int = 0

    def at(self, now: float) -> Used:
        """Begin a new minute and a new day if it is time, and return itself."""
        return self.add(Used(int(now // MINUTE), 0, 0, int(now // DAY)))

    def add(self, other: Used) -> Used:
        """Add what was used elsewhere, and return itself; of two minutes the later one counts."""
        if other.minute > self.minute:
            self.minute, self.tokens, self.requests = other.minute, 0, 0
        if other.minute == self.minute:
            self.tokens += other.tokens
            self.requests += other.requests
        if other.day > self.day:
            self.day, self.day_tokens = other.day, 0
        if other.day == self.day:
            self.day_tokens += other.day_tokens
        self.held += other.held
        return self


@dataclass(frozen=True)
class Left:
    """What is left of a limit, and in how many seconds it is whole again."""

    kind: str
    limit: int
    span: int
    used: int
    held: int
    reset: int

    @property
    def left(self) -> int:
        """What is not used, nor expected to be."""
        return self.limit - self.used - self.held

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of OpenAI's API; the gateway adds the limit of requests itself."""
        told = {"remaining": str(max(0, self.left)), "reset": f"{self.reset}s"}
        if self.kind == "tokens":
            told["limit"] = str(self.limit)
        names = {name: f"x-ratelimit-{name}-{self.kind}".encode() for name in told}
        return [(names[name], value.encode()) for name, value in told.items()]


@dataclass(frozen=True)
class Refusal:
    """Why a request has to come later."""

    over: Left

    @property
    def later(self) -> int:
        """In how many seconds."""
        used_up = self.over.used >= self.over.limit
        return self.over.reset if used_up else min(self.over.reset, BUSY_S)

    @property
    def message(self) -> str:
        """What the client is told."""
        over = self.over
        also = f", and running requests may take {over.held}" if over.held else ""
        return (
            f"This key may use {over.limit} {over.kind} per {SPAN[over.span]}: {over.used} are"
            f" used{also}. Try again in {self.later} s."
        )


class Asked:
    """A request that is under way, and what its sequences have taken so far."""

    def __init__(self, quotas: Quotas, owner: str, expected: int, most: int) -> None:
        self.owner = owner
        self.headers: list[tuple[bytes, bytes]] = []
        self._quotas = quotas
        self._expected = expected
        self._most = most
        self._begun = False
        self._took = self._counted = 0
        self._running: dict[str, Callable[[], int]] = {}
        self.ended = False

    def begins(self, name: str, prompt: int, most: int, taken: Callable[[], int]) -> None:
        """Learn of a sequence: its prompt, the most it may generate, and what tells its tokens."""
        if not self._begun:
            self._begun, self._expected = True, 0
        self._expected += prompt + min(most, self._most)
        self._running[name] = taken

    def took(self, tokens: int, name: str = "") -> None:
        """Learn what a sequence took that has ended."""
        self._running.pop(name, None)
        self._took += tokens
        if self.ended:
            self._quotas.settle(self)

    @property
    def held(self) -> int:
        """What it is expected to take yet."""
        return 0 if self.ended else max(0, self._expected - self._so_far())

    def news(self) -> int:
        """Return what it has taken since it was asked last."""
        so_far = self._so_far()
        new, self._counted = so_far - self._counted, max(so_far, self._counted)
        return max(0, new)

    def _so_far(self) -> int:
        return self._took + sum(taken() for taken in self._running.values())

    @property
    def over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.ended and not self._running

    def end(self) -> None:
        """Learn that its client has an answer, or has left."""
        self.ended = True
        self._quotas.settle(self)


class Quotas:
    """What keys use of their limits, on this replica and on the others, as far as it is known."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._mine: dict[str, Used] = {}
        self._others: dict[str, Used] = {}
        self._under_way: dict[str, set[Asked]] = {}
        self._limited = False

    def ask(self, owner: str, limits: Limits, expected: int = 0, most: int = 0) -> Asked | Refusal:
        """Take a request in, or tell why not.

        `expected` are the tokens that it may take, of which each sequence generates `most`.
        """
        owner = self._known(owner)
        if over := [left for left in self._left(owner, limits) if left.left <= 0]:
            return Refusal(max(over, key=lambda left: left.reset))
        asked = Asked(self, owner, expected, most)
        self._under_way.setdefault(owner, set()).add(asked)
        self._used(owner).requests += 1
        tokens = [left for left in self._left(owner, limits) if left.kind == "tokens"]
        if tokens:
            asked.headers = min(tokens, key=lambda left: left.left).headers
        return asked

    def settle(self, asked: Asked) -> None:
        """Count what a request has taken, in the minute that it is now."""
        used = self._used(asked.owner)
        tokens = asked.news()
        used.tokens += tokens
        used.day_tokens += tokens
        if asked.over:
            under_way = self._under_way.get(asked.owner, set())
            under_way.discard(asked)
            if not under_way:
                self._under_way.pop(asked.owner, None)

    def exchange(self, others: bytes) -> bytes:
        """Learn what was used elsewhere, and return what was used here: JSON, by owner."""
        self._others = read(json.loads(others))
        for owner in self._mine:
            used = self._settled(owner)
            used.held = sum(asked.held for asked in self._under_way.get(owner, ()))
        return json.dumps({"limited": self._limited, "used": written(self._mine)}).encode()

    def _used(self, owner: str) -> Used:
        return self._mine.setdefault(owner, Used()).at(self._clock())

    def _settled(self, owner: str) -> Used:
        for asked in list(self._under_way.get(owner, ())):
            self.settle(asked)
        return self._used(owner)

    def _left(self, owner: str, limits: Limits) -> Iterator[Left]:
        if not limits.any:
            return
        self._limited = True
        now = self._clock()
        mine = self._settled(owner)
        held = sum(asked.held for asked in self._under_way.get(owner, ()))
        other = self._others.get(owner, Used())
        held += other.held
        minute, day = (math.ceil(span - now % span) for span in (MINUTE, DAY))
        here = other.minute == mine.minute
        if (limit := limits.requests_per_minute) is not None:
            requests = mine.requests + (other.requests if here else 0)
            yield Left("requests", limit, MINUTE, requests, 0, minute)
        if (limit := limits.tokens_per_minute) is not None:
            tokens = mine.tokens + (other.tokens if here else 0)
            yield Left("tokens", limit, MINUTE, tokens, held, minute)
        if (limit := limits.tokens_per_day) is not None:
            tokens = mine.day_tokens + (other.day_tokens if other.day == mine.day else 0)
            yield Left("tokens", limit, DAY, tokens, held, day)

    def _known(self, owner: str) -> str:
        if owner not in self._mine and len(self._mine) >= MOST_OWNERS:
            return OTHERS
        return owner


def read(told: object) -> dict[str, Used]:
    """Return what was used by owner; what is not as `written` makes it is left out."""
    if not isinstance(told, Mapping):
        return {}
    return {
        owner: Used(*numbers)
        for owner, numbers in told.items()
        if isinstance(numbers, list) and len(numbers) == len(astuple(Used()))
        if all(type(number) is int for number in numbers)
    }


def written(used: Mapping[str, Used]) -> dict[str, list[int]]:
    """Return plain JSON values."""
    return {owner: list(astuple(each)) for owner, each in used.items()}


def summed(parts: Iterable[Mapping[str, Used]]) -> dict[str, Used]:
    """Return what was used in all of the parts together."""
    sums: dict[str, Used] = {}
    for part in parts:
        for owner, used in part.items():
            sums.setdefault(owner, Used()).add(used)
    return sums


class Sequence(Protocol):
    """A sequence of the engine; its prompt is read once it is not prefilling any more."""

    is_prefilling: bool


class Turns:
    """Fair queueing between owners: a sequence's turn is what its owner had before it, in tokens.

    Who comes back after a pause begins with those whose turn it is now, and not with what he has
    left unused. A turn is never taken back, so that an owner's sequences keep their order.
    """

    def __init__(self) -> None:
        self._now = 0
        self._next: dict[str, int] = {}
        self._open: dict[str, tuple[str, int, Sequence]] = {}
        self._generated: dict[str, float] = {ALL: UNTOLD}

    def take(self, owner: str, name: str, sequence: Sequence, prompt: int, most: int) -> int:
        """Return the turn of a sequence that generates so many tokens at the most."""
        if owner not in self._next and len(self._next) >= MOST_OWNERS:
            owner = OTHERS
        begun = (turn for _, turn, other in self._open.values() if not other.is_prefilling)
        self._now = max(self._now, max(begun, default=0))
        turn = max(self._next.get(owner, 0), self._now)
        expected = min(most, round(self._generated.get(owner, self._generated[ALL])))
        self._next[owner] = turn + prompt + expected + 1
        self._open[name] = (owner, turn, sequence)
        return turn

    def give(self, name: str, generated: int) -> None:
        """Learn that a sequence has ended."""
        owner, turn, sequence = self._open.pop(name, ("", 0, None))
        if sequence is not None and not sequence.is_prefilling:
            self._now = max(self._now, turn)
            for whose in (owner, ALL):
                before = self._generated.get(whose, float(generated))
                self._generated[whose] = before + (generated - before) / 8


def expected_of(body: bytes, length: int) -> tuple[int, int]:
    """Return the tokens that a request may take, and the most that a sequence of it generates.

    `length` is that of the whole body, which may be no JSON.
    """
    most, sequences = UNTOLD, 1
    try:
        told = json.loads(body)
        names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        most = next((n for name in names if type(n := told.get(name)) is int and n > 0), UNTOLD)
        n = told.get("n")
        sequences = n if type(n) is int and n > 0 else 1
    except (ValueError, AttributeError, RecursionError):
        pass
    return length // BYTES_PER_TOKEN + most * sequences, most


@cache
def quotas() -> Quotas:
    """Return those of this process."""
    return Quotas()
