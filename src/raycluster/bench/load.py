"""Puts load on an endpoint and measures it: closed and open loop, level after level."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from raycluster.bench.client import Sender
from raycluster.bench.loops import Progress, Senders, closed_loop, open_loop, watch_lag
from raycluster.bench.record import Record
from raycluster.bench.schedule import Closed, Job, Load, Open, Queue, Shape, arrivals, check_load
from raycluster.bench.stats import distribution, measure
from raycluster.bench.summary import Level, Summary
from raycluster.bench.verdict import Circumstances, Client, judge
from raycluster.contracts import Tell
from raycluster.errors import RayclusterError, UsageError
from raycluster.openai_wire.prompts import Prompt
from raycluster.openai_wire.target import Target, allow_connections, tls_context

Keep = Callable[[int, Record], None]
"""Takes each record as its request ends, with the number of its level."""

_PROGRESS_SECONDS = 2.0
_EXAMPLES = 5


def run_bench(
    prompts: Sequence[Prompt], target: Target, load: Load, *, tell: Tell, keep: Keep
) -> Summary:
    """Run every level and return the figures. An interrupt ends the run with what was measured.

    Raises UsageError for an impossible load, RayclusterError when nothing listens at the target.
    """
    check_load(load)
    run = _Run(prompts, target, load, tell=tell, keep=keep)
    started = time.time()
    gc.collect()
    gc.freeze()  # a large file of prompts would make each collection a pause in the measurement
    try:
        levels = asyncio.run(run.levels())
    except ExceptionGroup as group:
        first = _foreseen(group)
        if first is None:
            raise
        raise first from group
    finally:
        gc.unfreeze()
    if not levels:
        raise KeyboardInterrupt
    return Summary(started, target.shown, target.model or prompts[0].model, load, levels)


def _foreseen(group: ExceptionGroup[Exception]) -> Exception | None:
    """Return the first of our own errors that tasks ended with."""
    error: Exception | None = group.subgroup(RayclusterError)
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


class _Run:
    def __init__(
        self, prompts: Sequence[Prompt], target: Target, load: Load, *, tell: Tell, keep: Keep
    ) -> None:
        self._prompts = prompts
        self._target = target
        self._load = load
        self._tell = tell
        self._keep = keep
        self._queue = Queue(prompts, load)
        self._verify = tls_context(target)

    async def levels(self) -> tuple[Level, ...]:
        levels: list[Level] = []
        for shape in self._load.shapes:
            level = await self._level(len(levels), shape)
            if level is not None:
                levels.append(level)
            if level is None or level.seen.interrupted:
                break
        return tuple(levels)

    async def _level(self, number: int, shape: Shape) -> Level | None:
        """Run one level; None when it was interrupted before its first answer."""
        allow_connections(shape.concurrency or 0)
        interrupted = False
        progress = Progress(0.0, math.inf)
        cpu = time.thread_time()
        try:
            async with self._senders(shape) as senders:
                await self._warm_up(shape, senders)
                cpu = time.thread_time()
                progress.origin = time.monotonic()
                progress.stop = self._load.duration or math.inf
                await self._measured(number, shape, senders, progress)
        except asyncio.CancelledError:
            # The interrupt key; asyncio.run returns what this task returns in spite of it.
            interrupted = True
        if not progress.records and not interrupted:
            raise UsageError(
                "no request was due in that time", where=shape.label, hint="raise --duration"
            )
        if not progress.records:
            return None
        elapsed = max(record.end for record in progress.records)
        share = (time.thread_time() - cpu) / elapsed if elapsed else 0.0
        client = Client(distribution(progress.lags), share)
        return self._judged(shape, progress.records, client, interrupted=interrupted)

    def _judged(
        self, shape: Shape, records: list[Record], client: Client, *, interrupted: bool
    ) -> Level:
        measures = measure(records)
        seen = Circumstances(
            client,
            slots=shape.concurrency if isinstance(shape, Closed) else None,
            rate=shape.rate if isinstance(shape, Open) else None,
            repeated=self._queue.repeated,
            salted=self._load.salt,
            interrupted=interrupted,
        )
        failed = tuple(replace(r, gaps=()) for r in records if not r.ok)[:_EXAMPLES]
        return Level(shape, measures, judge(measures, seen), seen, failed)

    @contextlib.asynccontextmanager
    async def _senders(self, shape: Shape) -> AsyncIterator[Senders]:
        senders = Senders(self._sender)
        senders.make(shape.concurrency or 1)
        try:
            yield senders
        finally:
            senders.close()

    def _sender(self) -> Sender:
        return Sender(
            self._target,
            timeout=self._load.timeout,
            salt=self._load.salt,
            verify=self._verify,
            clock=time.monotonic,
        )

    async def _warm_up(self, shape: Shape, senders: Senders) -> None:
        """Open the connections and wake the server, with prompts outside the measured set."""
        count = self._load.warmups(shape)
        jobs = iter([_warm_up_job(self._prompts[0]) for _ in range(count)])
        progress = Progress(time.monotonic(), math.inf)
        await closed_loop(jobs, senders.all, progress, progress.records.append)
        failed = [record for record in progress.records if not record.ok]
        if failed:
            self._tell(f"warm-up: {len(failed)} of {count} failed: {failed[0].detail}")
        # A tunnel to a port where nobody listens accepts the connection, and then drops it.
        silent = [r for r in failed if r.status is None and r.failure in {"connect", "truncated"}]
        if failed and len(silent) == count:
            raise RayclusterError(
                f"nothing answers: {failed[0].detail}",
                where=self._target.base_url,
                hint="raycluster status",
            )

    async def _measured(
        self, number: int, shape: Shape, senders: Senders, progress: Progress
    ) -> None:
        def done(record: Record) -> None:
            progress.records.append(record)
            self._keep(number, record)

        watchers = [
            asyncio.create_task(watch_lag(progress.lags)),
            asyncio.create_task(self._report(shape, progress)),
        ]
        try:
            jobs = self._queue.level()
            if isinstance(shape, Closed):
                await closed_loop(jobs, senders.all, progress, done)
            else:
                times = arrivals(shape.rate, self._load.seed, shape.burstiness)
                due = zip(times, jobs, strict=False)
                room = asyncio.Semaphore(shape.concurrency or sys.maxsize)
                await open_loop(due, senders, progress, done, room)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _report(self, shape: Shape, progress: Progress) -> None:
        planned = self._load.planned(len(self._prompts))
        total = "" if planned is None else f" of {planned}"
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            records, elapsed = progress.records, time.monotonic() - progress.origin
            failed = sum(not record.ok for record in records)
            rate = (len(records) - failed) / elapsed
            self._tell(
                f"{shape.label}: {len(records)}{total} done, {failed} failed, {rate:.1f} requests/s"
            )


def _warm_up_job(like: Prompt) -> Job:
    text = f"{secrets.token_hex(4)} is a warm-up request. Count from one to ten."
    chat = {"messages": [{"role": "user", "content": text}]}
    body = chat if like.path.endswith("chat/completions") else {"prompt": text}
    return Job(Prompt("warm-up", 0, like.path, {**body, "max_tokens": 8}, like.model), 0)
