"""Sends the jobs: slots that take the next line, try it until it has a result, and write that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from raycluster.batch.job import Refused
from raycluster.batch.ledger import Ledger
from raycluster.core.errors import AuthError, RayclusterError
from raycluster.serve.asking.result import AskedLine
from raycluster.serve.asking.retrying_client import (
    AwayError,
    NoEntryError,
    Post,
    RetryingClient,
    Tries,
)

_SYNC_SECONDS = 5.0
_TICK_SECONDS = 0.5


class BatchRun:
    """One run over the jobs.

    `connect` makes one connection; `where` is what it leads to, for people; `check` raises when
    the way there is gone for good; `show` is called twice a second.
    """

    def __init__(
        self,
        jobs: Iterator[AskedLine | Refused],
        ledger: Ledger,
        connect: Callable[[], Post],
        *,
        where: str,
        slots: int,
        tries: Tries,
        check: Callable[[], None],
        show: Callable[[BatchRun], None],
    ) -> None:
        self.asker = RetryingClient(tries, slots)
        self.ledger = ledger
        self._jobs = jobs
        self._connect = connect
        self._where = where
        self._slots = slots
        self._check = check
        self._show = show

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
                    self.ledger.add(job.result)
                    await asyncio.sleep(0)
                    continue
                try:
                    self.ledger.add(await self.asker.result(sender, job))
                except NoEntryError as error:
                    raise no_entry(error, self._where) from error

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._check()
            self._show(self)
            try:
                self.asker.check_patience()
            except AwayError as error:
                raise away(error, self._where) from error

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            await asyncio.to_thread(self.ledger.sync)


def no_entry(error: Exception, where: str) -> AuthError:
    """Return the error for a key that is not served."""
    hint = "pass --api-key env:NAME and run the same command to continue; no results are lost"
    return AuthError(str(error), where=where, hint=hint)


def away(error: Exception, where: str) -> RayclusterError:
    """Return the error for an endpoint that did not come back."""
    hint = "see raycluster status, then run the same command to continue"
    return RayclusterError(str(error), where=where, hint=hint)
