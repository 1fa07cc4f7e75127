"""Who sends a level's load: this process, or several that take their numbers from one counter."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Protocol

from raycluster.bench.loops import Done, run_loop
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load, Open
from raycluster.bench.worker import Effort, LoadShare, LoadWorker, Plan
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target

_FLUSH_SECONDS = 0.25
_HEAD_START = 0.1
"""Seconds between the word to start and the start, for all processes to have heard it."""
_LEAVE_SECONDS = 5.0

Warmed = Callable[[list[RequestRecord]], None]
"""Takes the warm-up's records before the level begins; what it raises ends the run."""
Began = Callable[[float], None]
"""Takes the level's beginning, a moment of the monotonic clock."""


class Senders(Protocol):
    """Sends levels, one after the other."""

    async def level(
        self, plan: Plan, *, warmed: Warmed, began: Began, done: Done, efforts: list[Effort]
    ) -> None:
        """Warm up and send; fills `efforts`, one for each process, also when it is cancelled."""


class InProcess:
    """This process sends everything."""

    def __init__(self, prompts: Sequence[Prompt], target: Target, load: Load) -> None:
        self._worker = LoadWorker(prompts, target, load)

    async def level(
        self, plan: Plan, *, warmed: Warmed, began: Began, done: Done, efforts: list[Effort]
    ) -> None:
        effort = Effort()
        efforts.append(effort)
        self._worker.begin(plan)
        try:
            warmed(await self._worker.warm_up(plan))
            origin = time.monotonic()
            began(origin)
            await self._worker.run(plan, iter(plan.numbers), origin, done, effort)
        finally:
            self._worker.end()


class MultiProcess(AbstractContextManager["MultiProcess"]):
    """`count` processes, each with a share. Their clocks are one: the machine's monotonic clock."""

    def __init__(self, prompts: Sequence[Prompt], target: Target, load: Load, count: int) -> None:
        for shape in load.shapes:
            most = shape.concurrency if isinstance(shape, Closed | Open) else None
            if most is not None and most < count:
                raise UsageError(
                    f"{count} processes cannot share {most} slots",
                    where="--processes",
                    hint="at most one for each slot of --concurrency",
                )
        spawn = multiprocessing.get_context("spawn")
        self._counter = spawn.Value("q", 0)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            given = (theirs, self._counter)
            self._processes.append(spawn.Process(target=_work, args=given, daemon=True))
            self._pipes.append(ours)
            self._processes[-1].start()
            theirs.close()
        # Prompts are no argument: a process that dies before it has read its own hangs `start`.
        for number, pipe in enumerate(self._pipes):
            make = partial(LoadWorker, prompts, target, load, LoadShare(number, count))
            with contextlib.suppress(OSError):
                pipe.send(make)

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_LEAVE_SECONDS)
            if process.is_alive():
                process.kill()

    async def level(
        self, plan: Plan, *, warmed: Warmed, began: Began, done: Done, efforts: list[Effort]
    ) -> None:
        self._counter.value = plan.numbers.start
        try:
            self._tell(plan)
            warmed([record for pipe in self._pipes for record in await _receive(pipe)])
            origin = time.monotonic() + _HEAD_START
            began(origin)
            self._tell(origin)
        except BaseException:
            self._tell(None)
            raise
        ends = [asyncio.ensure_future(_collect(pipe, done, efforts)) for pipe in self._pipes]
        try:
            await asyncio.shield(asyncio.gather(*ends))
        except asyncio.CancelledError:
            self._tell(None)
            await asyncio.gather(*ends)
            raise

    def _tell(self, message: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # one that died is noticed where it should speak
                pipe.send(message)


async def _receive(pipe: Connection) -> Any:  # noqa: ANN401  # whatever the process sent
    try:
        message = await asyncio.to_thread(pipe.recv)
    except (EOFError, OSError) as error:
        hint = "the machine may have run out of memory; try fewer --processes"
        raise RayclusterError(
            "a load-generating process ended", where="bench", hint=hint
        ) from error
    if isinstance(message, Exception):
        raise message
    return message


async def _collect(pipe: Connection, done: Done, efforts: list[Effort]) -> None:
    """Take a process's records until its effort comes, which is the last."""
    while not isinstance(message := await _receive(pipe), Effort):
        for record in message:
            done(record)
    efforts.append(message)


def _work(pipe: Connection, counter: Synchronized[int]) -> None:
    """Do what the pipe says, in a process of its own, until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the first process says when to stop
    with contextlib.suppress(EOFError, OSError):
        make: Callable[[], LoadWorker] = pipe.recv()
        gc.freeze()
        run_loop(WorkerLoop(pipe, counter, make()).serve())


class WorkerLoop:
    """One of several processes: for each level it gets a plan, then a beginning or None to stop."""

    def __init__(self, pipe: Connection, counter: Synchronized[int], worker: LoadWorker) -> None:
        self._pipe = pipe
        self._counter = counter
        self._worker = worker
        self._records: list[RequestRecord] = []

    async def serve(self) -> None:
        while True:
            plan = await asyncio.to_thread(self._pipe.recv)
            if plan is None:
                continue
            self._worker.begin(plan)
            try:
                await self._level(plan)
            finally:
                self._worker.end()

    async def _level(self, plan: Plan) -> None:
        heard = asyncio.ensure_future(asyncio.to_thread(self._pipe.recv))
        try:
            self._pipe.send(await self._worker.warm_up(plan))
        except Exception as error:
            self._pipe.send(error)
        origin = await heard
        if origin is None:
            return
        effort = Effort()
        run = asyncio.ensure_future(
            self._worker.run(
                plan, _numbers(self._counter, plan.numbers), origin, self._records.append, effort
            )
        )
        stop = asyncio.ensure_future(self._stop(run))
        while not run.done():
            await asyncio.wait([run], timeout=_FLUSH_SECONDS)
            self._flush()
        stop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
        self._flush()
        self._pipe.send(effort)

    async def _stop(self, run: asyncio.Future[None]) -> None:
        """Cancel the run when the pipe says so, or when nobody is at its other end any more."""
        while not self._pipe.poll():
            await asyncio.sleep(_FLUSH_SECONDS)
        run.cancel()

    def _flush(self) -> None:
        if self._records:
            self._pipe.send(self._records)
            self._records.clear()


def _numbers(counter: Synchronized[int], numbers: range) -> Iterator[int]:
    """Yield the next number that no process has taken."""
    while True:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        if number >= numbers.stop:
            return
        yield number
