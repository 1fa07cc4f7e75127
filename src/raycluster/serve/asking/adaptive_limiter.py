"""How many requests may be under way, how many may begin, and when: as the answers allow."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass

START = 32
FALL = 0.5
"""What a round takes from the limit when all of it failed for too much load; others their share."""
MIN_ROUND = 8


@dataclass
class AdaptiveLimiter:
    """The limit, between 1 and `maximum`.

    A round is as many attempts as the limit, sent since its beginning. Rounds without a failure
    double the limit, up to what is known to be good, and from there on add a little; at first all
    of `maximum` counts as good. A round in which some failed for too much load takes in proportion:
    one dead node of five, whose share fails whatever the limit is, must not bring the others to a
    halt. What the first such round leaves is good. A single failure tells nothing about that, nor
    does a round that failed whole: that was an outage.
    """

    maximum: int
    limit: float = 0.0
    epoch: int = 0
    _good: float = 0.0
    _falling: bool = False
    _answered: int = 0
    _refused: int = 0

    def __post_init__(self) -> None:
        self.limit = self.limit or float(min(START, self.maximum))
        self._good = float(self.maximum)

    def answered(self, epoch: int) -> None:
        """Take note of an answer to a request that was sent in `epoch`."""
        if epoch == self.epoch:
            self._answered += 1
            self._end_round()

    def overloaded(self, epoch: int) -> None:
        """Take note of a failure that tells of too much load, of a request sent in `epoch`."""
        if epoch == self.epoch:
            self._refused += 1
            self._end_round()

    def _end_round(self) -> None:
        total = self._answered + self._refused
        if total < max(MIN_ROUND, int(self.limit)):
            return
        share = self._refused / total
        left = self.limit * (1 - FALL * share)
        many = self._refused > 1
        if many and not self._falling:
            self._good = left if self._answered else self.limit
        self._falling = many
        if not share and self.limit < self._good:
            self._begin(min(self.limit * 2, self._good))
        else:
            self._begin(left + (max(1, self.maximum // 32) if share < FALL else 0))

    def _begin(self, limit: float) -> None:
        """Begin a new epoch: what was sent before says nothing about the new limit."""
        self.limit = min(max(1.0, limit), float(self.maximum))
        self.epoch += 1
        self._answered = self._refused = 0


RATE_FALL = 0.7
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
            self._good = self.per_second * RATE_FALL
        self._answered = False
        self.per_second = max(self.least, self.per_second * RATE_FALL)


class RequestGate:
    """An async context manager around one attempt; lives in one event loop."""

    def __init__(self, pace: AdaptiveLimiter, rate: Rate) -> None:
        self.in_flight = 0
        self._pace = pace
        self._rate = rate
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = 0.0

    async def __aenter__(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self._leave()

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long; a longer pause stands."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._closed_until:
            self._closed_until = until
            loop.call_at(until, self._admit)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self.in_flight < int(self._pace.limit):
            if now < self._closed_until:
                return
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
                if gap := self._rate.gap:
                    self.pause(gap)
