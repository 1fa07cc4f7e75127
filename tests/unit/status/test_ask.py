"""Looks at replicas of this machine through real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from raycluster.connect import Fleet
from raycluster.spec import ClusterSpec
from raycluster.status.ask import APART_S, Watcher
from tests.unit.engine import Ports, engines


@contextmanager
def watching(spec: ClusterSpec) -> Iterator[Watcher]:
    with Fleet("scraped", 4) as fleet, Watcher(spec, fleet) as watcher:
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
