"""Looks at replicas of this machine through real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raycluster.hosts.fleet import Fleet
from raycluster.spec import ClusterSpec
from raycluster.status.ask import APART_S, StatusWatcher
from tests.unit.engine import Ports, engines


@contextmanager
def watching(spec: ClusterSpec) -> Iterator[StatusWatcher]:
    with Fleet("scraped", 4) as fleet, StatusWatcher(spec, fleet) as watcher:
        yield watcher


def test_the_first_look_has_a_second_one_a_moment_later() -> None:
    ports = Ports()
    with (
        engines(ports.http[0], ports.http[2]) as [one, two],
        engines(ports.http[1], model="other") as [other],
        watching(ports.spec()) as watcher,
    ):
        for engine, count in ((one, 5), (two, 2), (other, 50)):
            engine.took(count, running=count)
        now = watcher.look().figures["tiny"]
    assert (now.answered, now.running, now.waiting) == (2, 7.0, None)
    assert now.rates is not None
    assert now.rates.window_s >= APART_S * 0.9
    assert (now.rates.source, now.rates.requests, now.rates.tokens) == ("replicas", 0.0, 0.0)
    assert now.first_token is not None
    assert (now.first_token.p50, now.first_token.window_s) == (None, None)


def test_a_replica_that_remembers_needs_no_second_look() -> None:
    ports = Ports()
    with engines(ports.http[0], ports.http[1]) as [one, two], watching(ports.spec()) as watcher:
        began = time.monotonic()
        for engine in (one, two):
            engine.recent.keep()
            engine.now += 10
            engine.took(5, first=0.045)
        now = watcher.look().figures["tiny"]
        longest = 10 + time.monotonic() - began
    assert now.rates is not None
    assert now.rates.window_s is not None and now.rates.requests is not None
    assert 9.9 <= now.rates.window_s <= longest + 0.1
    assert 9.9 / longest <= now.rates.requests <= 1.01
    assert now.rates.tokens == pytest.approx(10 * now.rates.requests)
    assert now.first_token is not None
    assert now.first_token.window_s == now.rates.window_s
    assert now.first_token.p50 == pytest.approx(0.05)
    assert now.first_token.p95 == pytest.approx(0.059)


def test_one_replica_on_another_engine_is_known_though_another_answers() -> None:
    ports = Ports()
    with engines(ports.http[0], ports.http[1]) as [one, two], watching(ports.spec()) as watcher:
        one.ours.started("vllm", "", {})
        [model] = watcher.look().health.models
        assert (model.engine, model.reason) == ("", "")
        two.ours.started("transformers", "vLLM died", {})
        [model] = watcher.look().health.models
    assert (model.engine, model.reason) == ("transformers", "one of its replicas: vLLM died")


@pytest.mark.parametrize("remembers", [False, True])
def test_where_one_does_not_remember_there_is_a_second_look(remembers: bool) -> None:
    ports = Ports()
    with engines(ports.http[0], ports.http[1]) as [one, two], watching(ports.spec()) as watcher:
        began = time.monotonic()
        one.recent.keep()
        one.now += 10
        one.took(20)
        if remembers:  # for less long than a second look takes
            two.recent.keep()
            two.now += APART_S / 2
            two.took(20)
        now = watcher.look().figures["tiny"]
        longest = 10 + time.monotonic() - began
    assert now.answered == 2
    assert now.rates is not None
    assert now.rates.requests is not None
    assert 19 / longest <= now.rates.requests <= 2.6  # nothing of the other's


def test_later_looks_tell_what_happened_between_them() -> None:
    ports = Ports()
    with engines(ports.http[0]) as [engine], watching(ports.spec()) as watcher:
        engine.took(100)
        watcher.look()
        began = time.monotonic()
        engine.took(6)
        engine.ask_ready()
        now = watcher.look().figures["tiny"].rates
        took = time.monotonic() - began
    assert now is not None
    assert now.requests is not None
    assert now.tokens is not None
    assert 6 / now.requests <= took + 10
    assert round(now.tokens / now.requests, 3) == 10.0  # without the token of the readiness


def test_a_replica_that_ends_takes_its_figures_with_it() -> None:
    ports = Ports()
    with watching(ports.spec()) as watcher:
        with engines(ports.http[0]):
            assert watcher.look().figures["tiny"].answered == 1
        now = watcher.look().figures["tiny"]
    assert (now.answered, now.running, now.rates, now.kv_cache_usage) == (0, None, None, None)


def test_a_cluster_that_is_not_up_has_no_figures_and_no_errors() -> None:
    with watching(Ports().spec()) as watcher:
        standing = watcher.look()
    assert [problem.what for problem in standing.health.problems] == ["is not up"]
    assert standing.figures["tiny"].answered == 0
    assert (standing.gpus, standing.tunnels, standing.cost) == ({"head": ()}, (), None)
