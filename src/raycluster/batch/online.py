"""The way over HTTP from here: this program asks the endpoint itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from raycluster.batch.report import ProgressLine
from raycluster.batch.run import Runner, Sent, Task
from raycluster.batch.work import BatchRun
from raycluster.openai_client.target import Target, allow_connections, check_address, tls_context
from raycluster.serve.asking.sender import RequestSender

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
