"""How many requests may be under way: more while it works, fewer when it is too much; pure."""

from __future__ import annotations

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
