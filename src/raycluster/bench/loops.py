"""The two loops that send requests, and the watch over the event loop that they share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from raycluster.bench.client import Sender
from raycluster.bench.record import Record
from raycluster.bench.schedule import Job

_LAG_PERIOD = 0.02
_PAUSE = 0.1
"""Seconds that a slot rests after no connection; else a dead server would eat the file at once."""


@dataclass
class Progress:
    """The records of one level, and when its time began and ends."""

    origin: float
    stop: float
    records: list[Record] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)


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
    jobs: Iterator[Job],
    senders: Sequence[Sender],
    progress: Progress,
    done: Callable[[Record], None],
) -> None:
    """Send one job after the other from each sender, until there is none or time is up."""

    async def slot(sender: Sender) -> None:
        while (intended := time.monotonic() - progress.origin) < progress.stop:
            job = next(jobs, None)
            if job is None:
                return
            record = await sender.send(job, intended, progress.origin)
            done(record)
            if record.failure == "connect":
                await asyncio.sleep(_PAUSE)

    async with asyncio.TaskGroup() as slots:
        for sender in senders:
            slots.create_task(slot(sender))


async def open_loop(
    due: Iterator[tuple[float, Job]],
    senders: Senders,
    progress: Progress,
    done: Callable[[Record], None],
    room: asyncio.Semaphore,
) -> None:
    """Send each job when it is due, in seconds from the start, or as soon as `room` has room."""

    async def one(job: Job, intended: float) -> None:
        async with room:
            sender = senders.take()
            done(await sender.send(job, intended, progress.origin))
            senders.give_back(sender)

    async with asyncio.TaskGroup() as requests:
        for intended, job in due:
            if intended >= progress.stop:
                return
            # The schedule is absolute: a late request does not push back those after it.
            await asyncio.sleep(max(0.0, progress.origin + intended - time.monotonic()))
            requests.create_task(one(job, intended))


async def watch_lag(lags: list[float]) -> None:
    """Note, in ms, how late the event loop wakes a sleeper; until cancelled."""
    while True:
        due = time.monotonic() + _LAG_PERIOD
        await asyncio.sleep(_LAG_PERIOD)
        lags.append((time.monotonic() - due) * 1e3)
