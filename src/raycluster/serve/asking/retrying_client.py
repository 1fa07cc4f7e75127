"""Tries a request until it has its result; what it learns about the endpoint counts for all."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from raycluster.serve.asking.adaptive_limiter import AdaptiveLimiter, Rate, RequestGate
from raycluster.serve.asking.result import AskedLine, Reply, Result, UnansweredError
from raycluster.serve.asking.retry_policy import NO_ENTRY, Retry, decide, failed, unanswered

_AWAY_BACKOFF_SECONDS = 5.0
_FIRST_PATIENCE_SECONDS = 60.0


class Post(Protocol):
    """One connection; see Sender."""

    async def post(self, path: str, content: bytes) -> Reply: ...
    def close(self) -> None: ...


class NoEntryError(Exception):
    """The endpoint serves nothing with this key; `status` is its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the endpoint responds with {status} to this key")
        self.status = status


class AwayError(Exception):
    """Nothing was answered for too long."""


@dataclass(frozen=True)
class Tries:
    """How often and how long. Times in seconds.

    `timeout` is for one attempt; a line fails after `retries` attempts that count or `line_time`.
    The run gives up when nothing was answered for `patience`, and leaves the lines as they are.
    """

    timeout: float = 600.0
    retries: int = 8
    line_time: float = 3600.0
    patience: float = 900.0
    backoff: float = 0.5
    max_backoff: float = 30.0


@dataclass
class Counts:
    """What happened in this run."""

    sent: int = 0
    answered: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    """Attempts that were made again, by the code of their failure."""


class RetryingClient:
    """All that ask one endpoint, at most `limit` at once; lives in one event loop."""

    def __init__(self, tries: Tries, limit: int) -> None:
        self.counts = Counts()
        self.pace = AdaptiveLimiter(limit)
        self.rate = Rate(1 / tries.backoff, min(1 / tries.backoff, 1 / _AWAY_BACKOFF_SECONDS))
        self.trouble = ""
        self._tries = tries
        self._gate = RequestGate(self.pace, self.rate)
        self._away_since: float | None = None

    async def result(self, post: Post, job: AskedLine) -> Result:
        """Return the request's result. Raises NoEntryError."""
        began, tried, counted = time.monotonic(), 0, 0
        answered_before = self.counts.answered
        while True:
            outcome = await self._attempt(post, job)
            tried += 1
            if isinstance(outcome, Result):
                return outcome
            # When no line was answered since this one last failed, the fault is not this line's.
            counted += not outcome.away or self.counts.answered > answered_before
            answered_before = self.counts.answered
            late = time.monotonic() - began >= self._tries.line_time
            if counted and (counted > self._tries.retries or late):
                return failed(job, outcome, tried)
            self.counts.retried[outcome.code] += 1
            await self._rest(outcome, tried, began + self._tries.line_time)

    def check_patience(self) -> None:
        """Raise AwayError when nothing was answered for too long."""
        patience = self._tries.patience
        if not self.counts.answered:
            patience = min(patience, _FIRST_PATIENCE_SECONDS)
        since = self._away_since
        if since is not None and time.monotonic() - since > patience:
            raise AwayError(f"no response for {patience:g} s; the last failure: {self.trouble}")

    async def _attempt(self, post: Post, job: AskedLine) -> Result | Retry:
        async with self._gate:
            epoch, rate_epoch = self.pace.epoch, self.rate.epoch
            self.counts.sent += 1
            try:
                reply = await post.post(job.path, job.content)
            except UnansweredError as error:
                outcome: Result | Retry = unanswered(error)
            else:
                if reply.status in NO_ENTRY:
                    raise NoEntryError(reply.status)
                outcome = decide(job, reply, time.time())
            if isinstance(outcome, Result):
                self.counts.answered += 1
                self.pace.answered(epoch)
                self.rate.answered()
            elif outcome.overloaded:
                self.pace.overloaded(epoch)
            if isinstance(outcome, Retry) and outcome.too_often:
                self.rate.refused(rate_epoch)
                self._gate.pause(self.rate.gap)
            self._note(outcome, time.monotonic())
        return outcome

    def _note(self, outcome: Result | Retry, now: float) -> None:
        """Remember since when the endpoint is away, and close the gate for as long as it asks."""
        if isinstance(outcome, Result) or not outcome.away:
            self._away_since = None
            return
        self.trouble = outcome.detail
        self._away_since = now if self._away_since is None else self._away_since
        if outcome.wait:
            self._gate.pause(outcome.wait)

    async def _rest(self, outcome: Retry, tried: int, end: float) -> None:
        """Wait before the next attempt: what the server asked for, or longer each time.

        A server that asks for more than is left until `end` is asked once more then.
        """
        if outcome.too_often or (outcome.wait and outcome.away):
            return  # the gate is closed for as long
        if outcome.wait:
            await asyncio.sleep(min(outcome.wait, max(0.0, end - time.monotonic())))
            return
        longest = _AWAY_BACKOFF_SECONDS if outcome.away else self._tries.max_backoff
        delay = min(longest, self._tries.backoff * 2 ** min(tried - 1, 16))
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
