"""The limit against simulated endpoints: rounds of requests whose times follow from a rule."""

from __future__ import annotations

import pytest

from raycluster.batch.pace import START, Pace


def simulate(pace: Pace, rounds: int, *, capacity: int, refuse: bool = False) -> list[float]:
    """Serve `capacity` at once in a second; more wait their turn, or are refused at once."""
    now, limits = 0.0, []
    for _ in range(rounds):
        epoch, limit = pace.epoch, int(pace.limit)
        latency = 1.0 if refuse else max(1.0, limit / capacity)
        while pace.epoch == epoch:
            now += latency
            for place in range(limit):
                if refuse and place >= capacity:
                    pace.overloaded(epoch, now)
                else:
                    pace.answered(epoch, latency, now)
        limits.append(pace.limit)
    return limits


def test_begins_low_and_doubles_up_to_the_maximum() -> None:
    limits = simulate(Pace(64), 4, capacity=1000)
    assert limits == [16, 32, 64, 64]


@pytest.mark.parametrize("maximum", [1, 3])
def test_never_begins_above_the_maximum_nor_leaves_it(maximum: int) -> None:
    pace = Pace(maximum)
    assert pace.limit == maximum < START
    assert set(simulate(pace, 5, capacity=100)) == {maximum}


@pytest.mark.parametrize("capacity", [1, 5, 20, 100])
def test_an_endpoint_that_queues_is_not_given_much_more_than_it_serves(capacity: int) -> None:
    limits = simulate(Pace(1000), 300, capacity=capacity)
    assert all(limit >= min(START, capacity) * 0.7 for limit in limits)
    assert max(limits[-100:]) <= max(4 * capacity, 2 * START) + 64


@pytest.mark.parametrize("capacity", [4, 20, 100])
def test_an_endpoint_that_refuses_is_given_about_what_it_takes(capacity: int) -> None:
    limits = simulate(Pace(320), 200, capacity=capacity, refuse=True)
    assert capacity * 0.5 <= min(limits[-50:]) <= max(limits[-50:]) <= capacity + 30


def test_a_round_of_failures_alone_takes_half_down_to_one() -> None:
    pace = Pace(64, limit=64)
    for expected in (32, 16, 8, 4, 2, 1, 1):
        epoch = pace.epoch
        while pace.epoch == epoch:
            pace.overloaded(epoch, 1.0)
        assert pace.limit == expected


def fail(pace: Pace, rounds: int, *, after: int = 0) -> None:
    """Let rounds fail whole, the first of them but for `after` answers."""
    for _ in range(rounds):
        epoch = pace.epoch
        for _ in range(after):
            pace.answered(epoch, 1.0, 1.0)
        after = 0
        while pace.epoch == epoch:
            pace.overloaded(epoch, 1.0)


def test_after_an_outage_the_limit_is_back_within_a_few_rounds() -> None:
    pace = Pace(64)
    simulate(pace, 4, capacity=1000)
    fail(pace, 10)
    assert pace.limit == 1
    assert simulate(pace, 7, capacity=1000) == [2, 4, 8, 16, 32, 64, 64]


def test_after_failures_for_too_much_load_the_limit_is_back_at_what_the_first_left() -> None:
    pace = Pace(64)
    simulate(pace, 4, capacity=1000)
    fail(pace, 3, after=32)
    assert pace.limit == 64 * 3 / 4 / 4
    assert simulate(pace, 4, capacity=1000) == [24, 48, 50, 52]


def test_a_failure_on_the_way_back_does_not_end_it() -> None:
    pace = Pace(64)
    simulate(pace, 4, capacity=1000)
    fail(pace, 4)
    pace.overloaded(pace.epoch, 1.0)
    limits = simulate(pace, 5, capacity=1000)
    assert limits[0] < 6 and limits[-1] > 32


def test_what_became_slow_is_not_doubled_back() -> None:
    pace = Pace(64)
    simulate(pace, 4, capacity=1000)
    fail(pace, 4)
    assert pace.limit == 4
    for latency in (1.0, 9.0):
        epoch = pace.epoch
        while pace.epoch == epoch:
            pace.answered(epoch, latency, 1.0)
    assert pace.limit == 8 * 0.8
    assert simulate(pace, 1, capacity=1000)[0] < 9


def test_a_fifth_that_always_fails_does_not_stop_the_rest() -> None:
    pace = Pace(64)
    for number in range(20000):
        if number % 5:
            pace.answered(pace.epoch, 1.0, number / pace.limit)
        else:
            pace.overloaded(pace.epoch, number / pace.limit)
    assert 10 <= pace.limit <= 40


def test_what_was_sent_before_a_change_says_nothing_about_the_new_limit() -> None:
    pace = Pace(64, limit=8)
    for _ in range(8):
        pace.overloaded(0, 1.0)
    assert pace.limit == 4
    for _ in range(100):
        pace.overloaded(0, 1.0)
        pace.answered(0, 50.0, 60.0)
    assert pace.limit == 4


def test_harder_work_is_not_taken_for_too_much_load() -> None:
    pace = Pace(64)
    simulate(pace, 10, capacity=100)
    for _ in range(20):
        epoch = pace.epoch
        while pace.epoch == epoch:
            pace.answered(epoch, 10.0, 1000.0)
    assert pace.limit == 64
