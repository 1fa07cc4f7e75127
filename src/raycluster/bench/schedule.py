"""When requests are to be sent, and which: the load's shapes; no I/O, no clock."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycluster.core.errors import UsageError
from raycluster.openai_client.prompts import Prompt


@dataclass(frozen=True)
class Closed:
    """`concurrency` slots; each sends its next request when its last one has ended."""

    concurrency: int

    @property
    def label(self) -> str:
        return f"concurrency {self.concurrency}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "closed", "concurrency": self.concurrency}


@dataclass(frozen=True)
class Open:
    """Requests arrive at random, `rate` per second, whatever became of earlier ones.

    `burstiness` is the shape of the gamma distribution of the times between them, as in vLLM: 1 is
    a Poisson process, less comes in bursts, more is steadier.

    With `concurrency` no more than that many are under way; others wait, and the wait is counted.
    """

    rate: float
    concurrency: int | None = None
    burstiness: float = 1.0

    @property
    def label(self) -> str:
        bursts = "" if self.burstiness == 1 else f", burstiness {self.burstiness:g}"
        return f"rate {self.rate:g}/s{bursts}"

    def to_json(self) -> dict[str, Any]:
        shape = {"kind": "open", "rate": self.rate, "concurrency": self.concurrency}
        return shape if self.burstiness == 1 else {**shape, "burstiness": self.burstiness}


@dataclass(frozen=True)
class Replay:
    """Requests are due when the file's timestamps say so, `speed` times as fast."""

    speed: float = 1.0

    @property
    def label(self) -> str:
        return f"replay x{self.speed:g}"

    @property
    def concurrency(self) -> None:
        """As many as are due are under way."""
        return None

    def to_json(self) -> dict[str, Any]:
        return {"kind": "replay", "speed": self.speed}


Shape = Closed | Open | Replay


def shape_of(plain: Mapping[str, Any]) -> Shape:
    """Return the shape that `to_json` gave; KeyError, TypeError or RecordError for all else."""
    from raycluster.core.stored_json import decode

    kinds: dict[str, type[Shape]] = {"closed": Closed, "open": Open, "replay": Replay}
    return decode(json.dumps(plain), kinds[plain["kind"]], what="the load")


@dataclass(frozen=True)
class Load:
    """How hard and how long. One level per shape, one after the other.

    A level sends each prompt once, in file order; `repeat` times with that option. `requests`
    sends that many, `duration` (seconds) stops sending then; with either, each level goes on in the
    file where the one before has ended, and starts again at its end.
    `ramp` (seconds) is how long a level takes to reach its full load; the requests that were due
    before are not in its figures, and `duration` begins after it.
    `warmup` requests go first at each level (None: one per slot, or one). `timeout` is in seconds
    from sending to the end. `salt` gives repeats a `cache_salt`, which vLLM keys its cache on.
    """

    shapes: tuple[Shape, ...] = (Closed(8),)
    requests: int | None = None
    repeat: int = 1
    duration: float | None = None
    ramp: float = 0.0
    warmup: int | None = None
    timeout: float = 300.0
    seed: int = 0
    salt: bool = False

    def warmups(self, shape: Shape) -> int:
        """Return how many warm-up requests a level begins with."""
        if self.warmup is not None:
            return self.warmup
        return shape.concurrency if isinstance(shape, Closed) else 1

    @property
    def stop(self) -> float:
        """After how many seconds a level sends no more."""
        return math.inf if self.duration is None else self.ramp + self.duration

    def planned(self, prompts: int) -> int | None:
        """Return how many requests a level will send, None when only time limits it."""
        if self.requests is not None:
            return self.requests
        return None if self.duration is not None else prompts * self.repeat

    def to_json(self) -> dict[str, Any]:
        """Return what the levels have in common as plain values."""
        names = ("requests", "repeat", "duration", "warmup", "timeout", "seed", "salt")
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "ramp": self.ramp} if self.ramp else plain


def check_load(load: Load) -> None:
    """Raise UsageError for a load that cannot be."""
    positive: list[tuple[str, float | None]] = [
        ("--num-requests", load.requests),
        ("--repeat", load.repeat),
        ("--duration", load.duration),
        ("--timeout", load.timeout),
    ]
    for shape in load.shapes:
        positive.append(("--concurrency", shape.concurrency))
        if isinstance(shape, Open):
            positive.append(("--rate", shape.rate))
            positive.append(("--burstiness", shape.burstiness))
        if isinstance(shape, Replay):
            positive.append(("--replay", shape.speed))
    for option, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(
                f"{value:g} is not greater than zero", where=option, hint="use a number > 0"
            )
    if not 0 <= load.ramp < float("inf"):
        raise UsageError(f"{load.ramp:g} is less than zero", where="--ramp", hint="seconds")
    if load.warmup is not None and load.warmup < 0:
        raise UsageError("less than zero", where="--warmup", hint="0 sends no warm-up requests")


def arrivals(rate: float, seed: int, burstiness: float = 1.0) -> Iterator[float]:
    """Yield when requests are due, in seconds from the start; see Open."""
    # Not for secrets: the same seed must give the same arrivals.
    chance = random.Random(seed)  # noqa: S311
    due = 0.0
    while True:
        due += chance.gammavariate(burstiness, 1 / (rate * burstiness))
        yield due


def ramped(times: Iterator[float], ramp: float) -> Iterator[float]:
    """Yield the times, moved so that the rate grows from nothing to its own in `ramp` seconds."""
    for due in times:
        # The rate's integral is a parabola up to `ramp`, and a line from there.
        yield due + ramp / 2 if due > ramp / 2 else math.sqrt(2 * due * ramp)


def recorded(prompts: Sequence[Prompt], speed: float) -> list[float]:
    """Return when the prompts' timestamps want them sent, in seconds from the first.

    Raises UsageError for a prompt without one, or with one before the last.
    """
    due: list[float] = []
    for prompt in prompts:
        where = f"line {prompt.line}"
        if prompt.at is None:
            raise UsageError("no timestamp (in ms)", where=where, hint="omit --replay")
        at = (prompt.at - (prompts[0].at or 0.0)) / speed
        if due and at < due[-1]:
            raise UsageError("earlier than the line before", where=where, hint="sort the file")
        due.append(at)
    return due


@dataclass(frozen=True)
class BenchRequest:
    """One request to make; `repeat` counts how often its line was sent before."""

    prompt: Prompt
    repeat: int


@dataclass
class RequestSequence:
    """Requests by their number: the file in its order, again and again.

    `earlier` are the numbers that were sent at the levels before.
    """

    prompts: Sequence[Prompt]
    load: Load
    earlier: list[range] = field(default_factory=list)

    def level(self) -> range:
        """Return the numbers of the next level's requests; endless without a limit."""
        whole = self.load.requests is None and self.load.duration is None
        start = self.earlier[-1].stop if self.earlier and not whole else 0
        planned = self.load.planned(len(self.prompts))
        return range(start, sys.maxsize if planned is None else start + planned)

    def job(self, numbers: range, number: int) -> BenchRequest:
        """Return the request of this number, at the level of `numbers`."""
        line = number % len(self.prompts)
        spans = (*self.earlier, range(numbers.start, number))
        return BenchRequest(self.prompts[line], sum(self._times(span, line) for span in spans))

    def sent(self, numbers: range) -> int:
        """Note what a level has sent; return how many of it had the content of one before."""
        contents = [self._content(span) for span in self.earlier]
        fresh = self._content(numbers).difference(*contents)
        self.earlier.append(numbers)
        return len(numbers) - len(fresh)

    def _times(self, numbers: range, line: int) -> int:
        """Return how many of the numbers stand for this line."""
        size = len(self.prompts)
        return (numbers.stop - line + size - 1) // size - (numbers.start - line + size - 1) // size

    def _content(self, numbers: range) -> set[int]:
        size = len(self.prompts)
        taken = [self.prompts[number % size] for number in numbers[:size]]
        return {hash((prompt.path, repr(prompt.body))) for prompt in taken}
