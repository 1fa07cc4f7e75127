"""How many requests a second may begin once the endpoint has said that they were too many; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

FALL = 0.7
"""What a refusal leaves of the rate."""
RISE, QUICK_RISE = 0.04, 0.15
"""What an answer adds to it: near the rate that was too much, and below what was good before."""
RISES = 16.0
"""So many answers a second add that much; of more, each adds less."""


@dataclass
class Rate:
    """Without a limit until the first refusal, then `first`, and never below `least`, a second.

    Requests that were under way at a refusal say nothing about the rate after it, so each belongs
    to an epoch. Refusals without an answer between them, as those of a quota that is used up, do
    not make forgotten what was good before.
    """

    first: float
    least: float
    per_second: float = math.inf
    epoch: int = 0
    _good: float = math.inf
    _answered: bool = True

    @property
    def gap(self) -> float:
        """Seconds between two requests."""
        return 1 / self.per_second

    def answered(self) -> None:
        """Take note of an answer."""
        self._answered = True
        if self.per_second < self._good:
            self.per_second *= 1 + QUICK_RISE
        else:
            self.per_second += RISE * min(self.per_second, RISES)

    def refused(self, epoch: int) -> None:
        """Take note that a request sent in `epoch` came too early."""
        if epoch != self.epoch:
            return
        self.epoch += 1
        if math.isinf(self.per_second):
            self.per_second = self.first
            return
        if self._answered:
            self._good = self.per_second * FALL
        self._answered = False
        self.per_second = max(self.least, self.per_second * FALL)
