"""The way over HTTP from here: lines go to the endpoint side by side, until each has its result."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from raycluster.batch.job import Refused
from raycluster.batch.ledger import Ledger
from raycluster.batch.report import ProgressLine
from raycluster.batch.run import Runner, Sent, Task
from raycluster.core.errors import AuthError, RayclusterError
from raycluster.openai_client.target import Target, allow_connections, check_address, tls_context
from raycluster.serve.asking.result import AskedLine
from raycluster.serve.asking.retrying_client import (
    AwayError,
    NoEntryError,
    Post,
    RetryingClient,
    Tries,
)
from raycluster.serve.asking.sender import RequestSender

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


CONCURRENCY = 64

Connect = Callable[[], AbstractContextManager[tuple[Target, Callable[[], None]]]]
"""Yields where to send, and a check that raises when the way there is gone for good."""


def online(connect: Connect) -> Runner:
    """Return the way to what `connect` yields."""

    def runner(task: Task) -> Sent:
        with connect() as (target, check):
            return _send(task, target, check)

    return runner


def _send(task: Task, target: Target, check: Callable[[], None]) -> Sent:
    check_address(target)
    tries = task.options.tries
    slots = min(task.options.concurrency or CONCURRENCY, task.left)
    allow_connections(slots)
    tls = tls_context(target) if target.base_url.startswith("https") else None
    progress = ProgressLine(task.input_summary.lines)
    work = BatchRun(
        task.due(),
        task.ledger,
        lambda: RequestSender(target.url(""), tries.timeout, target.headers, tls),
        where=target.shown,
        slots=slots,
        tries=tries,
        check=check,
        show=lambda work: task.console.progress(_line(progress, work)),
    )
    began = time.monotonic()
    interrupted = _until_end(work)
    counts, seconds = work.asker.counts, time.monotonic() - began
    return Sent(target.shown, seconds, counts.sent, counts.retried, interrupted)


def _line(progress: ProgressLine, work: BatchRun) -> str:
    ledger = work.ledger
    limit = int(work.asker.pace.limit)
    return progress.line(time.monotonic(), ledger.ok, ledger.failed, limit, work.asker.trouble)


def _until_end(work: BatchRun) -> bool:
    """Run to the end; return whether a person or SIGTERM ended it before."""
    try:
        with asyncio.Runner() as runner:
            runner.run(_ended_by_sigterm(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return True
    return False


async def _ended_by_sigterm(work: BatchRun) -> None:
    task = asyncio.ensure_future(work.run())
    with _on_sigterm(task.cancel):
        await task


@contextmanager
def _on_sigterm(end: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGTERM, end)
    except (ValueError, RuntimeError):  # not in the main thread: signals are another's matter
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
