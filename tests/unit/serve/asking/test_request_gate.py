"""Who may pass, in which turn, and who is let go of."""

from __future__ import annotations

import asyncio

from raycluster.serve.asking.adaptive_limiter import AdaptiveLimiter
from raycluster.serve.asking.rate import Rate
from raycluster.serve.asking.request_gate import RequestGate

RESOLUTION_S = 0.001  # by so much a timer of asyncio may come early


def gate(most: int, rate: Rate | None = None) -> RequestGate:
    return RequestGate(AdaptiveLimiter(most, float(most)), rate or Rate(10.0, 0.1))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_as_many_pass_as_the_limit_allows_and_in_turn() -> None:
    async def run() -> None:
        door, passed, most = gate(2), [], 0
        leave = [asyncio.Event() for _ in range(5)]

        async def one(number: int) -> None:
            nonlocal most
            async with door:
                passed.append(number)
                most = max(most, door.in_flight)
                await leave[number].wait()

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        for number in range(5):
            await settled()
            assert passed == list(range(min(5, number + 2)))
            leave[number].set()
        await asyncio.gather(*tasks)
        assert (most, door.in_flight) == (2, 0)

    asyncio.run(run())


def test_who_is_cancelled_takes_no_place() -> None:
    async def run() -> None:
        door = gate(1)
        leave = asyncio.Event()

        async def one() -> None:
            async with door:
                await leave.wait()

        first, second, third = (asyncio.create_task(one()) for _ in range(3))
        await settled()
        second.cancel()
        leave.set()
        await first
        second_, _ = await asyncio.gather(second, third, return_exceptions=True)
        assert isinstance(second_, asyncio.CancelledError)
        assert door.in_flight == 0

    asyncio.run(run())


def test_nobody_passes_during_a_pause_and_a_longer_one_stands() -> None:
    async def run() -> None:
        door, loop = gate(4), asyncio.get_running_loop()
        began = loop.time()
        door.pause(0.2)
        door.pause(0.05)
        async with door:
            assert loop.time() - began >= 0.2 - RESOLUTION_S

    asyncio.run(run())


def test_a_rate_keeps_requests_apart() -> None:
    async def run() -> None:
        rate = Rate(50.0, 1.0)
        rate.refused(0)
        door, loop = gate(10, rate), asyncio.get_running_loop()
        began = loop.time()
        for _ in range(4):
            async with door:
                pass
        assert loop.time() - began >= 3 / 50 - RESOLUTION_S

    asyncio.run(run())
