"""How many requests may be under way: more while it helps, fewer when it is too much; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

START = 8
FALL = 0.5
"""What a round takes from the limit when all of it failed for too much load; others their share."""
EASE = 0.8
"""What is left of it after answers became slow."""
SLOW = 2.0
"""Answers are slow when half of them take so many times what they took at best."""
HELPED = 0.9
"""Taking from the limit must bring times down to this share, or it is the work that is harder."""
GAIN = 1.1
"""Doubling must give so many times the answers per second, or the doubling ends."""
MIN_ROUND = 8


@dataclass
class Pace:
    """The limit, between 1 and `maximum`.

    A round is as many attempts as the limit, sent since its beginning. In the beginning each round
    doubles the limit. Later a round adds a little; a slow round takes a fifth, and one in which
    some failed for too much load takes in proportion: one dead node of five, whose share fails
    whatever the limit is, must not bring the others to a halt. What failed rounds took is doubled
    back: up to the limit before them when all failed, for that was an outage and tells nothing
    about load, and else up to what the first of them left. A failure on the way back takes half of
    the rest of the way.
    """

    maximum: int
    limit: float = 0.0
    epoch: int = 0
    _doubling: bool = True
    _back_to: float = 0.0
    _falling: bool = False
    _best: float = 0.0
    _rate: float = 0.0
    _middle: float = 0.0
    _eased: float = 0.0
    _began: float | None = None
    _refused: int = 0
    _latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit = self.limit or float(min(START, self.maximum))

    def answered(self, epoch: int, latency: float, now: float) -> None:
        """Take note of an answer, `latency` seconds after its request was sent in `epoch`."""
        if epoch != self.epoch:
            return
        if self._began is None:
            self._began = now - latency
        self._latencies.append(latency)
        self._end_round(now)

    def overloaded(self, epoch: int, now: float) -> None:
        """Take note of a failure that tells of too much load, of a request sent in `epoch`."""
        if epoch == self.epoch:
            self._refused += 1
            self._end_round(now)

    def _end_round(self, now: float) -> None:
        total = len(self._latencies) + self._refused
        if total < max(MIN_ROUND, int(self.limit)):
            return
        share = self._refused / total
        slow, faster = self._judge(now)
        if share or slow or not faster:
            self._doubling = False
        left = self.limit * (1 - FALL * share)
        if slow:
            self._back_to = 0.0
        elif share and not self._falling:
            kept = self.limit if share == 1 else left
            self._back_to = (max(self._back_to, kept) + kept) / 2
        self._falling = share > 0
        if self._doubling:
            self._set(self.limit * 2)
        elif slow:
            self._eased = self._middle
            self._set(min(self.limit * EASE, left))
        elif not share and self.limit < self._back_to:
            self._set(min(self.limit * 2, self._back_to))
        else:
            step = max(1, self.maximum // 32) if share < FALL else 0
            self._set(left + step)

    def _judge(self, now: float) -> tuple[bool, bool]:
        """Return whether the round was slow, and whether it gave more answers than the last."""
        if not self._latencies:
            return False, False
        self._middle = median(self._latencies)
        helped = self._middle < HELPED * self._eased
        if not self._best or (self._eased and not helped):
            self._best = self._middle
        self._best = min(self._best, self._middle)
        self._eased = 0.0
        elapsed = now - (now if self._began is None else self._began)
        rate = len(self._latencies) / elapsed if elapsed > 0 else 0.0
        faster = rate > GAIN * self._rate
        self._rate = rate
        return self._middle > SLOW * self._best, faster

    def _set(self, limit: float) -> None:
        """Begin a new epoch: what was sent before says nothing about the new limit."""
        self.limit = min(max(1.0, limit), float(self.maximum))
        self.epoch += 1
        self._began = None
        self._refused = 0
        self._latencies = []
