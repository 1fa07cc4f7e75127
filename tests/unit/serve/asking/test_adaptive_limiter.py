"""The limit against simulated endpoints: rounds of requests that end as a rule says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from raycluster.serve.asking.adaptive_limiter import START, AdaptiveLimiter


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
