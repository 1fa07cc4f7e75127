"""The limit against simulated endpoints: rounds of requests that end as a rule says."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

import pytest

from raycluster.serve.asking.adaptive_limiter import (
    RATE_FALL,
    START,
    AdaptiveLimiter,
    Rate,
    RequestGate,
)


def simulate(pace: AdaptiveLimiter, rounds: int, refused: Callable[[int], bool]) -> list[float]:
    """Let the endpoint refuse the requests of a round whose place in it is `refused`."""
    limits = []
    for _ in range(rounds):
        epoch, limit = pace.epoch, int(pace.limit)
        while pace.epoch == epoch:
            for place in range(limit):
                (pace.overloaded if refused(place) else pace.answered)(epoch)
        limits.append(pace.limit)
    return limits


def none(_place: int) -> bool:
    return False


def every(_place: int) -> bool:
    return True


def test_begins_low_and_doubles_up_to_the_maximum() -> None:
    assert simulate(AdaptiveLimiter(200), 4, none) == [64, 128, 200, 200]


@pytest.mark.parametrize("maximum", [1, 3, 30])
def test_never_begins_above_the_maximum_nor_leaves_it(maximum: int) -> None:
    pace = AdaptiveLimiter(maximum)
    assert pace.limit == maximum < START
    assert set(simulate(pace, 5, none)) == {maximum}


@pytest.mark.parametrize("capacity", [4, 20, 100])
def test_an_endpoint_that_refuses_is_given_about_what_it_takes(capacity: int) -> None:
    limits = simulate(AdaptiveLimiter(320), 200, lambda place: place >= capacity)
    assert capacity * 0.5 <= min(limits[-50:]) <= max(limits[-50:]) <= capacity + 30


def test_a_round_of_failures_alone_takes_half_down_to_one() -> None:
    assert simulate(AdaptiveLimiter(64, limit=64), 7, every) == [32, 16, 8, 4, 2, 1, 1]


def test_after_an_outage_the_limit_is_back_within_a_few_rounds() -> None:
    pace = AdaptiveLimiter(64, limit=64)
    assert simulate(pace, 10, every)[-1] == 1
    assert simulate(pace, 7, none) == [2, 4, 8, 16, 32, 64, 64]


def test_after_failures_for_too_much_load_the_limit_is_back_at_what_the_first_left() -> None:
    pace = AdaptiveLimiter(64, limit=64)
    simulate(pace, 1, lambda place: place >= 32)
    assert simulate(pace, 2, every)[-1] == 64 * 3 / 4 / 4
    assert simulate(pace, 4, none) == [24, 48, 50, 52]


def test_single_failures_do_not_keep_the_limit_down() -> None:
    pace, dice = AdaptiveLimiter(64, limit=64), random.Random(1)
    simulate(pace, 10, every)
    limits = simulate(pace, 60, lambda place: dice.random() < 0.01)
    assert max(limits[:12]) > 50
    assert min(limits[20:]) > 50


def test_a_fifth_that_always_fails_does_not_stop_the_rest() -> None:
    pace = AdaptiveLimiter(64)
    for number in range(20000):
        (pace.answered if number % 5 else pace.overloaded)(pace.epoch)
    assert 10 <= pace.limit <= 40


def test_what_was_sent_before_a_change_says_nothing_about_the_new_limit() -> None:
    pace = AdaptiveLimiter(64, limit=8)
    for _ in range(8):
        pace.overloaded(0)
    assert pace.limit == 4
    for _ in range(100):
        pace.overloaded(0)
        pace.answered(0)
    assert pace.limit == 4


def test_without_a_refusal_there_is_no_limit() -> None:
    rate = Rate(10.0, 0.1)
    rate.answered()
    assert math.isinf(rate.per_second)
    assert rate.gap == 0


def test_the_first_refusal_begins_a_rate_and_later_ones_lower_it() -> None:
    rate = Rate(10.0, 1.0)
    rate.refused(0)
    assert rate.per_second == 10.0
    assert rate.gap == pytest.approx(0.1)
    rate.refused(rate.epoch)
    assert rate.per_second == pytest.approx(10.0 * RATE_FALL)
    for _ in range(50):
        rate.refused(rate.epoch)
    assert rate.per_second == 1.0


def test_what_was_under_way_at_a_refusal_counts_once() -> None:
    rate = Rate(10.0, 1.0)
    for _ in range(20):
        rate.refused(0)
    assert rate.per_second == 10.0


def test_it_rises_quickly_to_what_was_good_and_slowly_from_there() -> None:
    rate = Rate(10.0, 0.1)
    rate.refused(0)
    rate.answered()
    good = rate.per_second * RATE_FALL
    rate.refused(rate.epoch)
    for _ in range(4):
        rate.refused(rate.epoch)  # a quota that is used up does not make that forgotten
    assert rate.per_second < 2.0
    for _ in range(15):
        if rate.per_second < good:
            rate.answered()
    assert good <= rate.per_second < good * 1.2
    before = rate.per_second
    rate.answered()
    assert 1.0 < rate.per_second / before < 1.05


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
