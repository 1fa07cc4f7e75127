"""Puts load on an endpoint and measures it: closed and open loop, level after level."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from raycluster.bench.capacity import requests_per_second
from raycluster.bench.limits import Limit, SearchResult, found, probe
from raycluster.bench.loops import run_loop
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import (
    Closed,
    Load,
    Open,
    Replay,
    RequestSequence,
    Shape,
    check_load,
    recorded,
)
from raycluster.bench.senders import InProcess, MultiProcess, Senders
from raycluster.bench.server import ServerFigures, ServerWatch
from raycluster.bench.stats import Bound, distribution, measure
from raycluster.bench.summary import BenchSummary, Level
from raycluster.bench.verdict import Circumstances, Client, judge
from raycluster.bench.worker import Effort, Plan
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.core.interfaces import Tell
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target, allow_connections

Keep = Callable[[int, RequestRecord], None]
"""Takes each record as its request ends, with the number of its level."""

_PROGRESS_SECONDS = 2.0
_EXAMPLES = 5


@dataclass(frozen=True)
class Conditions:
    """How a run is made, apart from its load.

    `goodput` are bounds that one request must keep to count as good; `find_max` limits that the
    search for the highest rate holds every level to. `alive` tells whether the tunnel stands, where
    there is one. `calibrate` measures afterwards how many such requests this client can send.
    `prefix_expected` says that prompts are meant to begin alike; `watch` looks at the servers.
    `before` are levels of this run that were over already, when it was cut short; `over` takes each
    level that was run to its end.
    """

    processes: int = 1
    goodput: tuple[Bound, ...] = ()
    find_max: tuple[Limit, ...] = ()
    alive: Callable[[], bool] = lambda: True
    calibrate: bool = False
    prefix_expected: bool = False
    watch: ServerWatch | None = None
    before: tuple[Level, ...] = ()
    over: Callable[[Level], None] = lambda _: None


def run_bench(
    prompts: Sequence[Prompt],
    target: Target,
    load: Load,
    *,
    tell: Tell,
    keep: Keep,
    conditions: Conditions | None = None,
) -> BenchSummary:
    """Run every level and return the figures. An interrupt ends the run with what was measured.

    Raises UsageError for an impossible load, RayclusterError when nothing listens at the target.
    """
    conditions = conditions or Conditions()
    check_load(load)
    for shape in load.shapes:
        if isinstance(shape, Replay):
            recorded(prompts, shape.speed)
        allow_connections(shape.concurrency or 0)
    started = time.time()
    gc.collect()
    gc.freeze()  # a large file of prompts would make each collection a pause in the measurement
    try:
        with _senders(prompts, target, load, conditions.processes) as senders:
            run = _Run(prompts, target, load, senders, conditions, tell=tell, keep=keep)
            levels = run_loop(run.levels())
    except ExceptionGroup as group:
        first = _foreseen(group)
        if first is None:
            raise
        raise first from group
    finally:
        gc.unfreeze()
    if not levels:
        raise KeyboardInterrupt
    if conditions.calibrate and not levels[-1].seen.interrupted:
        levels = _calibrated(levels, conditions.processes)
    model = target.model or prompts[0].model
    return BenchSummary(started, target.shown, model, load, levels, found=run.found(levels))


def judged(
    shape: Shape,
    records: Sequence[RequestRecord],
    seen: Circumstances,
    goodput: Sequence[Bound] = (),
) -> Level:
    """Return a level with its figures and the verdict on it; `records` holds one at least."""
    seen = replace(
        seen,
        slots=shape.concurrency if isinstance(shape, Closed) else None,
        rate=shape.rate if isinstance(shape, Open) else None,
    )
    measures = measure(records, goodput)
    failed = tuple(replace(r, gaps=()) for r in records if not r.ok)[:_EXAMPLES]
    return Level(shape, measures, judge(measures, seen), seen, failed)


def _calibrated(levels: tuple[Level, ...], processes: int) -> tuple[Level, ...]:
    """Judge the fastest level by what the client is able to do, too."""
    answered = [level for level in levels if level.measures.completed]
    if not answered:
        return levels
    fastest = max(answered, key=lambda level: level.measures.request_throughput)
    capacity = requests_per_second(fastest.measures, processes)
    client = replace(fastest.seen.client, capacity=capacity)
    seen = replace(fastest.seen, client=client)
    judged = replace(fastest, seen=seen, verdict=judge(fastest.measures, seen))
    return tuple(judged if level is fastest else level for level in levels)


def _senders(
    prompts: Sequence[Prompt], target: Target, load: Load, processes: int
) -> AbstractContextManager[Senders]:
    if processes < 1:
        raise UsageError(
            f"{processes} is not greater than zero", where="--processes", hint="1 or more"
        )
    if processes == 1:
        return contextlib.nullcontext(InProcess(prompts, target, load))
    return MultiProcess(prompts, target, load, processes)


def generated(records: Sequence[RequestRecord]) -> int | None:
    """Return how many tokens the servers generated for these, None where one did not say."""
    tokens = [record.output_tokens for record in records]
    return None if None in tokens else sum(count or 0 for count in tokens)


def _foreseen(group: ExceptionGroup[Exception]) -> Exception | None:
    """Return the first of our own errors that tasks ended with."""
    error: Exception | None = group.subgroup(RayclusterError)
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


class _Run:
    def __init__(
        self,
        prompts: Sequence[Prompt],
        target: Target,
        load: Load,
        senders: Senders,
        conditions: Conditions,
        *,
        tell: Tell,
        keep: Keep,
    ) -> None:
        self._target = target
        self._load = load
        self._senders = senders
        self._conditions = conditions
        self._tell = tell
        self._keep = keep
        self._jobs = RequestSequence(prompts, load)
        for level in conditions.before:
            self._jobs.sent(level.numbers)

    async def levels(self) -> tuple[Level, ...]:
        levels: list[Level] = []
        shapes = self._shapes()
        shape: Shape | None = next(shapes)
        before = list(self._conditions.before)
        while shape is not None:
            level = before.pop(0) if before else await self._level(len(levels), shape)
            if level is not None:
                levels.append(level)
            if level is None or level.seen.interrupted:
                break
            try:
                shape = shapes.send(self._keeps(level))
            except StopIteration:
                shape = None
        return tuple(levels)

    def found(self, levels: Sequence[Level]) -> SearchResult | None:
        """Return the end of the search, where one was asked for."""
        limits = self._conditions.find_max
        if not limits:
            return None
        tried = [(lv.shape.rate, self._keeps(lv)) for lv in levels if isinstance(lv.shape, Open)]
        return found([limit.text for limit in limits], tried)

    def _shapes(self) -> Generator[Shape, bool, None]:
        first = self._load.shapes[0]
        if self._conditions.find_max and isinstance(first, Open):
            yield from probe(first, self._load.duration)
        else:
            for shape in self._load.shapes:  # noqa: UP028  # what is sent here has no taker
                yield shape

    def _keeps(self, level: Level) -> bool:
        return all(limit.kept(level.measures) for limit in self._conditions.find_max)

    async def _level(self, number: int, shape: Shape) -> Level | None:
        """Run one level; None when it was interrupted before its first answer."""
        interrupted = False
        origins: list[float] = []
        records: list[RequestRecord] = []
        efforts: list[Effort] = []
        plan = Plan(shape, self._jobs.level(), tuple(self._jobs.earlier))

        def began(origin: float) -> None:
            origins.append(origin)
            report(origin)

        try:
            async with self._reported(shape, records) as report:
                await self._senders.level(
                    plan,
                    warmed=self._warmed,
                    began=began,
                    done=lambda record: self._done(number, record, records),
                    efforts=efforts,
                )
        except asyncio.CancelledError:
            # The interrupt key; the runner returns what this task returns in spite of it.
            interrupted = True
        server = await self._watched(origins)
        numbers = plan.numbers[: len(records)]
        repeated = self._jobs.sent(numbers)
        steady = [record for record in records if record.intended >= self._load.ramp]
        if not steady and not interrupted:
            raise UsageError(
                "no request was scheduled in that time", where=shape.label, hint="raise --duration"
            )
        if not steady:
            return None
        lags = [lag for effort in efforts for lag in effort.lags]
        share = max(effort.cpu_share for effort in efforts)
        seen = Circumstances(
            Client(distribution(lags), share, len(efforts)),
            repeated=repeated,
            salted=self._load.salt,
            interrupted=interrupted,
            prefix_expected=self._conditions.prefix_expected,
            generated=generated(records),
            server=server,
        )
        level = judged(shape, steady, seen, self._conditions.goodput)
        level = replace(level, numbers=numbers)
        if not interrupted:
            self._conditions.over(level)
        return level

    async def _watched(self, origins: list[float]) -> ServerFigures | None:
        """Return what the servers did since the level began, where it began and they were seen."""
        if self._conditions.watch is None or not origins:
            return None
        return await asyncio.to_thread(self._conditions.watch.end, origins[0], self._load.ramp)

    def _done(self, number: int, record: RequestRecord, records: list[RequestRecord]) -> None:
        unanswered = record.status is None and record.failure in {"connect", "truncated"}
        if unanswered and not self._conditions.alive():
            record = replace(record, failure="tunnel")
        records.append(record)
        self._keep(number, record)

    def _warmed(self, records: list[RequestRecord]) -> None:
        """Say how the warm-up went, and look at the servers from now on.

        Raises RayclusterError when nobody answered at all.
        """
        failed = [record for record in records if not record.ok]
        if failed:
            self._tell(f"warm-up: {len(failed)} of {len(records)} failed: {failed[0].detail}")
        # A tunnel to a port where nobody listens accepts the connection, and then drops it.
        silent = [r for r in failed if r.status is None and r.failure in {"connect", "truncated"}]
        if failed and len(silent) == len(records):
            raise RayclusterError(
                f"no request was answered: {failed[0].detail}",
                where=self._target.base_url,
                hint="raycluster status",
            )
        if self._conditions.watch:
            self._conditions.watch.begin()  # now, for the warm-up's tokens do not count

    @contextlib.asynccontextmanager
    async def _reported(
        self, shape: Shape, records: list[RequestRecord]
    ) -> AsyncIterator[Callable[[float], None]]:
        """Tell of the progress; yields what is to be called when the level begins."""
        tasks: list[asyncio.Task[None]] = []

        def began(origin: float) -> None:
            tasks.append(asyncio.create_task(self._report(shape, records, origin)))

        try:
            yield began
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self, shape: Shape, records: list[RequestRecord], origin: float) -> None:
        planned = self._load.planned(len(self._jobs.prompts))
        total = "" if planned is None else f" of {planned}"
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            failed = sum(not record.ok for record in records)
            rate = (len(records) - failed) / (time.monotonic() - origin)
            self._tell(
                f"{shape.label}: {len(records)}{total} done, {failed} failed, {rate:.1f} requests/s"
            )
