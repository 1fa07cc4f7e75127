"""Sends the jobs: slots that take the next line, try it until it has a result, and write that."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from raycluster.batch.gate import Gate
from raycluster.batch.job import Job, Refused
from raycluster.batch.ledger import Ledger, Result
from raycluster.batch.pace import Pace
from raycluster.batch.sender import Reply, UnansweredError
from raycluster.batch.verdict import NO_ENTRY, Again, failed, judge, unanswered
from raycluster.errors import AuthError, RayclusterError

_SYNC_SECONDS = 5.0
_TICK_SECONDS = 0.5
_AWAY_BACKOFF_SECONDS = 5.0
_FIRST_PATIENCE_SECONDS = 60.0


class Post(Protocol):
    """One connection; see Sender."""

    async def post(self, path: str, content: bytes) -> Reply: ...
    def close(self) -> None: ...


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


class Work:
    """One run over the jobs.

    `connect` makes one connection; `where` is what it leads to, for people; `check` raises when
    the way there is gone for good; `show` is called twice a second.
    """

    def __init__(
        self,
        jobs: Iterator[Job | Refused],
        ledger: Ledger,
        connect: Callable[[], Post],
        *,
        where: str,
        slots: int,
        tries: Tries,
        check: Callable[[], None],
        show: Callable[[Work], None],
    ) -> None:
        self.counts = Counts()
        self.pace = Pace(slots)
        self.ledger = ledger
        self.trouble = ""
        self._jobs = jobs
        self._connect = connect
        self._where = where
        self._slots = slots
        self._tries = tries
        self._check = check
        self._show = show
        self._gate = Gate(self.pace)
        self._away_since: float | None = None

    async def run(self) -> None:
        """Return when every job has its result; raises RayclusterError."""
        slots = [asyncio.create_task(self._slot()) for _ in range(self._slots)]
        others = [asyncio.create_task(self._watch()), asyncio.create_task(self._sync())]
        every: asyncio.Future[Any] = asyncio.gather(*slots)
        try:
            either: list[asyncio.Future[Any]] = [every, *others]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                if task.done():
                    task.result()
            await every
        finally:
            for task in (*slots, *others):
                task.cancel()
            await asyncio.gather(every, *others, return_exceptions=True)

    async def _slot(self) -> None:
        """Hold one line at a time: what waits in memory is one line per slot."""
        with contextlib.closing(self._connect()) as sender:
            for job in self._jobs:
                if isinstance(job, Refused):
                    error = ("invalid_line", f"line {job.line}: {job.reason}")
                    self.ledger.add(Result(job.line, job.custom_id, error=error))
                    await asyncio.sleep(0)
                    continue
                self.ledger.add(await self._result(sender, job))

    async def _result(self, sender: Post, job: Job) -> Result:
        began, tried, counted = time.monotonic(), 0, 0
        answered_before = self.counts.answered
        while True:
            outcome = await self._attempt(sender, job)
            tried += 1
            if isinstance(outcome, Result):
                return outcome
            # When no line was answered since this one last failed, the fault is not this line's.
            counted += not outcome.away or self.counts.answered > answered_before
            answered_before = self.counts.answered
            late = time.monotonic() - began > self._tries.line_time
            if counted and (counted > self._tries.retries or late):
                return failed(job, outcome, tried)
            self.counts.retried[outcome.code] += 1
            await self._rest(outcome, tried)

    async def _attempt(self, sender: Post, job: Job) -> Result | Again:
        async with self._gate:
            epoch = self.pace.epoch
            self.counts.sent += 1
            try:
                reply = await sender.post(job.path, job.content)
            except UnansweredError as error:
                outcome: Result | Again = unanswered(error)
            else:
                if reply.status in NO_ENTRY:
                    raise AuthError(
                        f"the endpoint answers {reply.status} to this key",
                        where=self._where,
                        hint="--api-key env:NAME; nothing is lost: the same command goes on",
                    )
                outcome = judge(job, reply, time.time())
            now = time.monotonic()
            if isinstance(outcome, Result):
                self.counts.answered += 1
                self.pace.answered(epoch)
            elif outcome.overloaded:
                self.pace.overloaded(epoch)
            self._note(outcome, now)
        return outcome

    def _note(self, outcome: Result | Again, now: float) -> None:
        """Remember since when the endpoint is away, and close the gate for as long as it asks."""
        if isinstance(outcome, Result) or not outcome.away:
            self._away_since = None
            return
        self.trouble = outcome.detail
        self._away_since = now if self._away_since is None else self._away_since
        if outcome.wait:
            self._gate.pause(outcome.wait)

    async def _rest(self, outcome: Again, tried: int) -> None:
        """Wait before the next attempt: what the server asked for, or longer each time."""
        if outcome.wait and outcome.away:
            return  # the gate is closed for as long
        if outcome.wait:
            await asyncio.sleep(outcome.wait)
            return
        longest = _AWAY_BACKOFF_SECONDS if outcome.away else self._tries.max_backoff
        delay = min(longest, self._tries.backoff * 2 ** min(tried - 1, 16))
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._check()
            self._show(self)
            patience = self._tries.patience
            if not self.counts.answered:
                patience = min(patience, _FIRST_PATIENCE_SECONDS)
            since = self._away_since
            if since is not None and time.monotonic() - since > patience:
                raise RayclusterError(
                    f"nothing was answered for {patience:g} s; the last failure: {self.trouble}",
                    where=self._where,
                    hint="raycluster status; then the same command goes on from here",
                )

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            await asyncio.to_thread(self.ledger.sync)
