"""The rate after a refusal: how far it falls, and how it rises again."""

from __future__ import annotations

import math

import pytest

from raycluster.serve.asking.rate import FALL, Rate


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
    assert rate.per_second == pytest.approx(10.0 * FALL)
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
    good = rate.per_second * FALL
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
