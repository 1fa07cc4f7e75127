"""Looks at replicas -> figures, and when there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import pytest

from raycluster.observe.engine_metrics import Reading, Service
from raycluster.status.figures import (
    Latency,
    Look,
    ModelFigures,
    Rates,
    ReplicaSample,
    Told,
    cost,
    figures,
    quantile,
)
from tests.unit.status.standing import spec

approx: Any = pytest.approx
INF = math.inf
NEW, OLD = 3.0, 1000.0  # seconds that a replica has run


def seen(
    at: float,
    requests: float,
    *,
    model: str = "m",
    started: float = 1.0,
    age: float | None = OLD,
    first: Mapping[float, float] | None = None,
    tokens: float | None = None,
    kv: float | None = 0.1,
) -> ReplicaSample:
    engine = Reading(started, age, 2.0, 1.0, kv)
    count = 10 * requests if tokens is None else tokens
    return ReplicaSample(at, model, Service(engine, requests, 0.0, count, first or {}))


def test_counts_of_all_replicas_grow_between_looks() -> None:
    looks: list[Look] = [
        {"a:1": seen(100, 50), "b:1": seen(100.5, 7), "c:1": seen(100, 0, model="other")},
        {"a:1": seen(105, 55), "b:1": seen(105.5, 8), "c:1": seen(105, 90, model="other")},
        {"a:1": seen(110, 70), "b:1": seen(110.5, 9), "c:1": seen(110, 99, model="other")},
    ]
    now = figures(looks, "m")
    assert now.rates is not None
    rates = astuple(now.rates)
    assert rates == ("replicas", 10.0, pytest.approx(2.2), 0.0, pytest.approx(22.0))
    assert (now.answered, now.running, now.waiting, now.kv_cache_usage) == (2, 4.0, 2.0, 0.1)


def test_the_fullest_cache_counts() -> None:
    look: Look = {"a:1": seen(1, 0, kv=0.2), "b:1": seen(1, 0, kv=0.9), "c:1": seen(1, 0, kv=None)}
    assert figures([look], "m").kv_cache_usage == 0.9


def test_one_look_tells_no_rates() -> None:
    now = figures([{"a:1": seen(100, 50)}], "m")
    assert (now.rates, now.running) == (None, 2.0)
    assert figures([], "m") == ModelFigures()


def test_a_replica_that_began_in_the_window_counts_from_zero() -> None:
    looks: list[Look] = [
        {"a:1": seen(100, 50)},
        {"a:1": seen(110, 60), "b:1": seen(110, 20, age=NEW)},
    ]
    now = figures(looks, "m").rates
    assert now is not None
    assert now.requests == pytest.approx(3.0)


def test_a_new_process_at_an_old_place_counts_from_zero() -> None:
    looks: list[Look] = [{"a:1": seen(100, 5000)}, {"a:1": seen(110, 20, started=9.0, age=NEW)}]
    now = figures(looks, "m").rates
    assert now is not None
    assert now.requests == pytest.approx(2.0)


@pytest.mark.parametrize("age", [OLD, None])
def test_no_rate_is_told_while_it_is_unknown_what_one_replica_did(age: float | None) -> None:
    looks: list[Look] = [
        {"a:1": seen(100, 50)},
        {"a:1": seen(110, 60), "b:1": seen(110, 900, age=age)},
    ]
    assert figures(looks, "m").rates is None


def test_tokens_that_are_not_counted_are_unknown() -> None:
    engine = Reading(1.0, OLD)
    looks: list[Look] = [
        {"a:1": ReplicaSample(at, "m", Service(engine, at, 0.0, None, {}))} for at in (1.0, 9.0)
    ]
    rates = figures(looks, "m").rates
    assert rates is not None
    assert (rates.requests, rates.tokens) == (1.0, None)


def test_percentiles_are_of_the_window_or_of_all_time_where_that_is_short_or_idle() -> None:
    before, after = {0.1: 100.0, 1.0: 100.0, INF: 100.0}, {0.1: 100.0, 1.0: 110.0, INF: 110.0}
    long: list[Look] = [{"a:1": seen(100, 0, first=before)}, {"a:1": seen(110, 1, first=after)}]
    latency = figures(long, "m").first_token
    assert latency is not None
    assert (latency.p50, latency.window_s) == (approx(0.55), 10.0)
    short: list[Look] = [{"a:1": seen(100, 0, first=before)}, {"a:1": seen(100.4, 1, first=after)}]
    latency = figures(short, "m").first_token
    assert latency is not None
    assert (latency.p50, latency.window_s) == (approx(0.055), None)
    idle: list[Look] = [{"a:1": seen(100, 0, first=after)}, {"a:1": seen(110, 1, first=after)}]
    latency = figures(idle, "m").first_token  # nothing in the window: of all time, and says so
    assert latency is not None
    assert (latency.p50, latency.window_s) == (approx(0.055), None)
    never: list[Look] = [{"a:1": seen(100, 0)}, {"a:1": seen(110, 1)}]
    assert figures(never, "m").first_token == Latency(None, None, None)


def test_what_prometheus_told_comes_first() -> None:
    told = Told(Rates("prometheus", 60, 1, 0, 2), Latency(0.1, 0.2, 60))
    now = figures([{"a:1": seen(100, 50)}], "m", told)
    assert (now.rates, now.first_token, now.running) == (told.rates, told.first_token, 2.0)


@pytest.mark.parametrize(
    ("share", "counts", "value"),
    [
        (0.5, {}, None),
        (0.5, {1.0: 0.0, INF: 0.0}, None),
        (0.5, {1.0: 10.0, INF: 10.0}, 0.5),
        (0.95, {0.1: 90.0, 0.2: 100.0, INF: 100.0}, 0.15),
        (0.5, {0.1: 0.0, 0.2: 0.0, 0.4: 2.0, INF: 2.0}, 0.3),
        (0.95, {1.0: 1.0, INF: 2.0}, INF),
    ],
)
def test_quantiles_are_estimated_within_buckets(
    share: float, counts: Mapping[float, float], value: float | None
) -> None:
    found = quantile(share, counts)
    assert found == (None if value is None else pytest.approx(value))


def rated(tokens: float | None) -> ModelFigures:
    return ModelFigures(1, rates=Rates("replicas", 10, 1, 0, tokens))


@pytest.mark.parametrize(
    ("models", "per_million"),
    [
        ({"m": rated(1000.0)}, pytest.approx(5 / 3.6)),
        ({"m": rated(400.0), "n": rated(600.0)}, pytest.approx(5 / 3.6)),
        ({"m": rated(0.0)}, None),
        ({"m": rated(1000.0), "n": rated(None)}, None),
        ({"m": ModelFigures()}, None),
    ],
)
def test_tokens_cost_what_the_hosts_cost(
    models: Mapping[str, ModelFigures], per_million: float | None
) -> None:
    now = cost(spec(), models)
    assert now is not None
    assert (now.currency, now.per_hour, now.per_million) == ("EUR", 5.0, per_million)


def test_no_cost_is_made_up() -> None:
    free = {"host": "127.0.0.1"}
    assert cost(spec(head=free, workers=[]), {"m": rated(9.0)}) is None
    now = cost(spec(head=free), {"m": rated(9.0)})
    assert now is not None
    assert (now.per_hour, now.per_million, now.unpriced) == (3.0, None, ("head",))
