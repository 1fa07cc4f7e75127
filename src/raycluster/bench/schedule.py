"""What is to be sent and when: the load's shape, and the order of the jobs; no I/O, no clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycluster.errors import UsageError
from raycluster.openai_wire.prompts import Prompt


@dataclass(frozen=True)
class Job:
    """One request to make; `repeat` counts how often its line was sent before."""

    prompt: Prompt
    repeat: int


@dataclass(frozen=True)
class Closed:
    """`concurrency` slots; each sends its next request when its last one has ended."""

    concurrency: int

    @property
    def label(self) -> str:
        """A short name."""
        return f"concurrency {self.concurrency}"

    def to_json(self) -> dict[str, Any]:
        """Return the shape as plain values."""
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
        """A short name."""
        bursts = "" if self.burstiness == 1 else f", burstiness {self.burstiness:g}"
        return f"rate {self.rate:g}/s{bursts}"

    def to_json(self) -> dict[str, Any]:
        """Return the shape as plain values."""
        shape = {"kind": "open", "rate": self.rate, "concurrency": self.concurrency}
        return shape if self.burstiness == 1 else {**shape, "burstiness": self.burstiness}


Shape = Closed | Open


@dataclass(frozen=True)
class Load:
    """How hard and how long. One level per shape, one after the other.

    A level sends each prompt once, in file order; `repeat` times with that option. `requests`
    sends that many, going on in the file from level to level and starting again at its end.
    `duration` (seconds) stops sending then; without `requests` the file starts again until then.
    `warmup` requests go first at each level (None: one per slot, or one). `timeout` is in seconds
    from sending to the end. `salt` gives repeats a `cache_salt`, which vLLM keys its cache on.
    """

    shapes: tuple[Shape, ...] = (Closed(8),)
    requests: int | None = None
    repeat: int = 1
    duration: float | None = None
    warmup: int | None = None
    timeout: float = 300.0
    seed: int = 0
    salt: bool = False

    def warmups(self, shape: Shape) -> int:
        """Return how many warm-up requests a level begins with."""
        if self.warmup is not None:
            return self.warmup
        return shape.concurrency if isinstance(shape, Closed) else 1

    def planned(self, prompts: int) -> int | None:
        """Return how many requests a level will send, None when only time limits it."""
        if self.requests is not None:
            return self.requests
        return None if self.duration is not None else prompts * self.repeat

    def to_json(self) -> dict[str, Any]:
        """Return what the levels have in common as plain values."""
        names = ("requests", "repeat", "duration", "warmup", "timeout", "seed", "salt")
        return {name: getattr(self, name) for name in names}


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
    for option, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{value:g} is not above zero", where=option, hint="give a number > 0")
    if load.warmup is not None and load.warmup < 0:
        raise UsageError("less than zero", where="--warmup", hint="0 sends no warm-up requests")


@dataclass
class Queue:
    """Hands out jobs, level after level, and knows what was handed out before."""

    prompts: Sequence[Prompt]
    load: Load
    _next: int = 0
    _seen: set[int] = field(default_factory=set)
    _sent: dict[int, int] = field(default_factory=dict)
    repeated: int = 0

    def level(self) -> Iterator[Job]:
        """Yield the jobs of the next level, and count in `repeated` those sent before."""
        self.repeated = 0
        start = self._next if self.load.requests is not None else 0
        planned = self.load.planned(len(self.prompts))
        for index in itertools.count(start) if planned is None else range(start, start + planned):
            self._next = index + 1
            yield self._job(self.prompts[index % len(self.prompts)])

    def _job(self, prompt: Prompt) -> Job:
        content = hash((prompt.path, repr(prompt.body)))
        self.repeated += content in self._seen
        self._seen.add(content)
        repeat = self._sent.get(prompt.line, 0)
        self._sent[prompt.line] = repeat + 1
        return Job(prompt, repeat)


def arrivals(rate: float, seed: int, burstiness: float = 1.0) -> Iterator[float]:
    """Yield when requests are due, in seconds from the start; see Open."""
    # Not for secrets: the same seed must give the same arrivals.
    chance = random.Random(seed)  # noqa: S311
    due = 0.0
    while True:
        due += chance.gammavariate(burstiness, 1 / (rate * burstiness))
        yield due
