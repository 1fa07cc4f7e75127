"""One process's share of the load: warm up, then send what falls to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycluster.bench.client import Sender
from raycluster.bench.loops import Done, Senders, Timing, closed_loop, open_loop, watch_lag
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import (
    BenchRequest,
    Closed,
    Load,
    Open,
    Replay,
    RequestSequence,
    Shape,
    arrivals,
    ramped,
    recorded,
)
from raycluster.openai_client.lines import (
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    RERANK_2,
    RESPONSES,
    SCORE,
)
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target, tls_context


@dataclass(frozen=True)
class LoadShare:
    """Which part of the load: every `of`-th slot or arrival, from the `number`-th on."""

    number: int = 0
    of: int = 1

    def part(self, count: int) -> range:
        """Return this share of so many numbered things."""
        return range(self.number, count, self.of)


@dataclass
class Effort:
    """What a level cost its client: lags of the event loop in ms, and its share of one core."""

    lags: list[float] = field(default_factory=list)
    cpu_share: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A level: its shape, the numbers of its requests, and those sent at levels before."""

    shape: Shape
    numbers: range
    earlier: tuple[range, ...] = ()


class LoadWorker:
    """Sends a share of each level. Its senders live as long as the level."""

    def __init__(
        self, prompts: Sequence[Prompt], target: Target, load: Load, share: LoadShare | None = None
    ) -> None:
        self._prompts = prompts
        self._target = target
        self._load = load
        self._share = share or LoadShare()
        self._verify = tls_context(target)
        self._senders = Senders(self._sender)

    def begin(self, plan: Plan) -> None:
        """Make the senders of a level."""
        self._senders = Senders(self._sender)
        self._senders.make(len(self._share.part(plan.shape.concurrency or 1)))

    def end(self) -> None:
        """Close them; may be called twice."""
        self._senders.close()

    async def warm_up(self, plan: Plan) -> list[RequestRecord]:
        """Open the connections and wake the server, with prompts outside the measured set."""
        count = len(self._share.part(self._load.warmups(plan.shape)))
        jobs = iter([_warm_up_job(self._prompts[0]) for _ in range(count)])
        records: list[RequestRecord] = []
        timing = Timing(time.monotonic(), float("inf"))
        await closed_loop(jobs, [(0.0, each) for each in self._senders.all], timing, records.append)
        return records

    async def run(
        self, plan: Plan, numbers: Iterator[int], origin: float, done: Done, effort: Effort
    ) -> None:
        """Send this share from `origin` on, a moment of the monotonic clock.

        A closed loop takes the numbers of its requests from `numbers`, which shares may have in
        common; in an open one each share knows its own.
        """
        timing = Timing(origin, self._load.stop)
        await asyncio.sleep(timing.until(0.0))
        watcher = asyncio.create_task(watch_lag(effort.lags))
        cpu, began = time.thread_time(), time.monotonic()
        try:
            await self._send(plan, numbers, timing, done)
        finally:
            elapsed = time.monotonic() - began
            effort.cpu_share = (time.thread_time() - cpu) / elapsed if elapsed else 0.0
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _send(self, plan: Plan, numbers: Iterator[int], timing: Timing, done: Done) -> None:
        jobs = RequestSequence(self._prompts, self._load, list(plan.earlier))
        shape, share = plan.shape, self._share
        if isinstance(shape, Closed):
            given = (jobs.job(plan.numbers, number) for number in numbers)
            starts = [self._load.ramp * slot / shape.concurrency for slot in self._slots(shape)]
            slots = list(zip(starts, self._senders.all, strict=True))
            await closed_loop(given, slots, timing, done)
            return
        all_due = zip(self._due(shape), plan.numbers, strict=False)
        ours = itertools.islice(all_due, share.number, None, share.of)
        due = ((at, jobs.job(plan.numbers, number)) for at, number in ours)
        room = len(share.part(shape.concurrency)) if shape.concurrency else sys.maxsize
        await open_loop(due, self._senders, timing, done, asyncio.Semaphore(room))

    def _slots(self, shape: Closed) -> range:
        return self._share.part(shape.concurrency)

    def _due(self, shape: Open | Replay) -> Iterator[float]:
        if isinstance(shape, Replay):
            return iter(recorded(self._prompts, shape.speed))
        times = arrivals(shape.rate, self._load.seed, shape.burstiness)
        return ramped(times, self._load.ramp) if self._load.ramp else times

    def _sender(self) -> Sender:
        return Sender(
            self._target,
            timeout=self._load.timeout,
            salt=self._load.salt,
            verify=self._verify,
            clock=time.monotonic,
        )


def _warm_up_job(like: Prompt) -> BenchRequest:
    text = f"{secrets.token_hex(4)} is a warm-up request. Count from one to ten."
    bodies: dict[str, dict[str, Any]] = {
        RESPONSES: {"input": text, "max_output_tokens": 8},
        COMPLETIONS: {"prompt": text, "max_tokens": 8},
        EMBEDDINGS: {"input": text},
        SCORE: {"text_1": text, "text_2": text},
        RERANK: {"query": text, "documents": [text]},
        RERANK_2: {"query": text, "documents": [text]},
    }
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 8}
    body = bodies.get(like.path, chat)
    return BenchRequest(Prompt("warm-up", 0, like.path, body, like.model), 0)
