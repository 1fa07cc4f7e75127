"""The two loops that send requests, and the watch over the event loop that they share."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raycluster.bench.client import Sender
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import BenchRequest

T = TypeVar("T")

_LAG_PERIOD = 0.02
_PAUSE = 0.1
"""Seconds that a slot rests after no connection; else a dead server would eat the file at once."""


Done = Callable[[RequestRecord], None]
"""Takes each record as its request ends."""


@dataclass(frozen=True)
class Timing:
    """When a level's time began on the monotonic clock, and after how many seconds it ends."""

    origin: float
    stop: float

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.origin

    def until(self, moment: float) -> float:
        """Return the seconds from now to a moment of the level; 0 when it is past.

        They are whole milliseconds, rounded up: loops that round to the nearest wake too early.
        """
        return max(0.0, math.ceil((moment - self.now()) * 1e3) / 1e3)


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as asyncio.run does, on the cheapest event loop that is there.

    A request to end the program cancels it, also where SIGINT is ignored.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):  # a node's environment may lack it
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(_cancelled_on_request(main))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _cancelled_on_request(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101  # this
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):  # the command line heeds it
                before[number] = handler
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        return await main
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Senders:
    """One sender per request under way, made when needed and used again."""

    def __init__(self, make: Callable[[], Sender]) -> None:
        self._make = make
        self._idle: list[Sender] = []
        self.all: list[Sender] = []

    def make(self, count: int) -> None:
        made = [self._make() for _ in range(count)]
        self.all += made
        self._idle += made

    def take(self) -> Sender:
        if not self._idle:
            self.make(1)
        return self._idle.pop()

    def give_back(self, sender: Sender) -> None:
        self._idle.append(sender)

    def close(self) -> None:
        for sender in self.all:
            sender.close()


async def closed_loop(
    jobs: Iterator[BenchRequest], slots: Sequence[tuple[float, Sender]], timing: Timing, done: Done
) -> None:
    """Send one job after the other from each slot, until there is none or time is up.

    A slot is the time at which it begins, and its sender.
    """

    async def slot(start: float, sender: Sender) -> None:
        await asyncio.sleep(timing.until(start))
        while (intended := timing.now()) < timing.stop:
            job = next(jobs, None)
            if job is None:
                return
            record = await sender.send(job, intended, timing.origin)
            done(record)
            if record.failure == "connect":
                await asyncio.sleep(_PAUSE)

    async with asyncio.TaskGroup() as group:
        for start, sender in slots:
            group.create_task(slot(start, sender))


async def open_loop(
    due: Iterator[tuple[float, BenchRequest]],
    senders: Senders,
    timing: Timing,
    done: Done,
    room: asyncio.Semaphore,
) -> None:
    """Send each job when it is due, in seconds from the start, or as soon as `room` has room."""

    async def one(job: BenchRequest, intended: float) -> None:
        async with room:
            sender = senders.take()
            done(await sender.send(job, intended, timing.origin))
            senders.give_back(sender)

    async with asyncio.TaskGroup() as requests:
        for intended, job in due:
            if intended >= timing.stop:
                return
            # The schedule is absolute: a late request does not push back those after it.
            await asyncio.sleep(timing.until(intended))
            requests.create_task(one(job, intended))


async def watch_lag(lags: list[float]) -> None:
    """Note, in ms, how late the event loop wakes a sleeper; until cancelled."""
    while True:
        due = time.monotonic() + _LAG_PERIOD
        await asyncio.sleep(_LAG_PERIOD)
        lags.append((time.monotonic() - due) * 1e3)
