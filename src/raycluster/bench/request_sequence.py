"""Which prompt each request of a level takes, and whether it was sent before; pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from raycluster.bench.schedule import Load
from raycluster.openai_client.prompts import Prompt


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
