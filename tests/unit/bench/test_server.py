import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from raycluster.bench.report import render
from raycluster.bench.server import (
    MOST_SAMPLES,
    Look,
    ReplicaLife,
    ServerFigures,
    Spread,
    summarize,
)
from raycluster.observe.engine_metrics import GpuSample, Reading
from tests.unit.bench.level import requests, summary

FIRST = Reading(
    started=100.0,
    age=50.0,
    running=0.0,
    waiting=0.0,
    kv_cache_usage=0.0,
    prompt_tokens=1000.0,
    generation_tokens=500.0,
    prefix_cache_queries=1000.0,
    prefix_cache_hits=900.0,
    preemptions=3.0,
    requests=10.0,
)


def grown(
    by: int, before: Reading = FIRST, *, running: float = 0.0, waiting: float = 0.0
) -> Reading:
    """Return what a replica says after `by` requests more, of 100 tokens in and 10 out."""
    return replace(
        before,
        running=running,
        waiting=waiting,
        kv_cache_usage=running / 10,
        prompt_tokens=(before.prompt_tokens or 0) + 100 * by,
        generation_tokens=(before.generation_tokens or 0) + 10 * by,
        prefix_cache_queries=(before.prefix_cache_queries or 0) + 100 * by,
        prefix_cache_hits=(before.prefix_cache_hits or 0) + 25 * by,
        requests=(before.requests or 0) + by,
    )


def seen(*looks: Look, origin: float = 10.0, ramp: float = 0.0) -> ServerFigures:
    server = summarize(looks, origin, ramp)
    assert server is not None
    return server


def level(**places: Sequence[Reading | None]) -> list[Look]:
    """Return a look every two seconds, the first just before second 10; None: nothing is there."""
    count = max(len(readings) for readings in places.values())
    return [
        Look(
            9.9 if n == 0 else 10.0 + 2 * n,
            {f"{p}:30000": r for p, of in places.items() if (r := of[n]) is not None},
        )
        for n in range(count)
    ]


def test_counts_are_those_of_the_level() -> None:
    server = seen(*level(a=[FIRST, grown(4, running=2.0), grown(8)], b=[FIRST, FIRST, grown(2)]))
    assert (server.requests, server.prompt_tokens, server.generation_tokens) == (10, 1000, 100)
    assert (server.prefix_cache_queries, server.prefix_cache_hits) == (1000, 250)
    assert server.prefix_cache_hit_rate == 0.25
    assert server.preemptions == 0
    assert server.replicas == (
        ReplicaLife("a:30000", 8, 80, None, None),
        ReplicaLife("b:30000", 2, 20, None, None),
    )
    assert (server.fewest_replicas, server.most_replicas) == (2, 2)


def test_means_leave_out_the_looks_before_and_after() -> None:
    busy = [grown(1, running=4.0, waiting=2.0), grown(2, running=8.0)]
    server = seen(*level(a=[FIRST, *busy, grown(9)], b=[FIRST, FIRST, busy[1], FIRST]))
    assert server.running == Spread(10.0, 16.0)
    assert server.waiting == Spread(1.0, 2.0)
    assert server.kv_cache_usage == Spread(0.5, 0.8)
    assert [(s.t, s.running, s.replicas) for s in server.samples] == [
        (pytest.approx(-0.1), 0.0, 2),
        (2.0, 4.0, 2),
        (4.0, 16.0, 2),
        (6.0, 0.0, 2),
    ]


def test_means_leave_out_the_ramp() -> None:
    looks = level(a=[FIRST, grown(1, running=1.0), grown(2, running=7.0), grown(3)])
    server = seen(*looks, ramp=3.0)
    assert server.running == Spread(7.0, 7.0)
    assert server.requests == 3


def test_a_level_shorter_than_a_period_has_counts_alone() -> None:
    server = seen(*level(a=[FIRST, grown(5)]))
    assert (server.requests, server.running, server.kv_cache_usage) == (5, None, None)


def test_a_new_process_counts_from_its_beginning() -> None:
    after = grown(3, Reading(started=112.0, age=1.0))
    server = seen(*level(a=[FIRST, grown(2), None, after, grown(1, after)]))
    assert server.requests == 2 + 4
    assert server.replicas == (
        ReplicaLife("a:30000", 2, 20, None, 2.0),
        ReplicaLife("a:30000", 4, 40, 6.0, None),
    )
    assert (server.fewest_replicas, server.most_replicas) == (0, 1)


def test_a_replica_that_was_overlooked_is_no_new_one() -> None:
    old = replace(FIRST, age=400.0)
    server = seen(*level(a=[FIRST] * 4, b=[None, old, grown(1, old), grown(3, old)]))
    assert server.replicas[1] == ReplicaLife("b:30000", 3, 30, None, None)


def test_silence_is_no_end() -> None:
    looks = level(a=[FIRST, grown(1, running=3.0), None, grown(5)])
    looks[2] = replace(looks[2], silent=frozenset({"a:30000"}))
    server = seen(*looks)
    assert server.replicas == (ReplicaLife("a:30000", 5, 50, None, None),)
    assert server.samples[2].running == 3.0
    assert server.unanswered == 1


def test_a_silent_host_silences_its_replicas() -> None:
    looks = level(a=[FIRST, grown(1), None])
    looks[2] = replace(looks[2], silent=frozenset({"a"}))
    [replica] = seen(*looks).replicas
    assert (replica.requests, replica.went) == (1, None)


def test_several_servers_at_one_address_give_no_figures() -> None:
    other = replace(grown(500), started=99.0, age=60.0)
    assert summarize(level(a=[FIRST, other, grown(1)]), 10.0) is None


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    """Where several processes serve one address, vLLM tells no beginning."""
    first = replace(FIRST, started=0.0, age=None)
    server = seen(*level(a=[first, replace(grown(0, first), requests=2.0, prompt_tokens=50.0)]))
    assert (server.requests, server.prompt_tokens) == (2, 50)


def test_nothing_seen_is_none() -> None:
    assert summarize([], 0.0) is None
    assert summarize([Look(0.0, {}), Look(1.0, {}, silent=frozenset({"a"}))], 0.0) is None


def test_gpus_have_figures_of_their_own() -> None:
    def gpus(busy: float, used: float) -> tuple[GpuSample, ...]:
        one = GpuSample("a", "0", "H100", busy, used, 80.0)
        return (one, replace(one, index="1", utilization=0.0, memory_bytes=1.0))

    told = [gpus(0.0, 1.0), gpus(0.5, 10.0), gpus(1.0, 30.0), gpus(0.0, 70.0)]
    looks = [replace(k, gpus=g) for k, g in zip(level(a=[FIRST] * 4), told, strict=True)]
    server = seen(*looks)
    assert server.gpu_utilization == Spread(0.375, 0.5)
    assert server.gpu_memory_bytes == Spread(20.0, 30.0)
    assert [(g.index, g.utilization, g.memory_bytes) for g in server.gpus] == [
        ("0", Spread(0.75, 1.0), Spread(20.0, 30.0)),
        ("1", Spread(0.0, 0.0), Spread(1.0, 1.0)),
    ]


@pytest.mark.parametrize("count", [2, MOST_SAMPLES, MOST_SAMPLES + 1, 2500])
def test_json_is_plain_and_holds_few_samples(count: int) -> None:
    plain = seen(*level(a=[FIRST] * (count - 1) + [grown(1)])).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    times = [sample["t"] for sample in plain["samples"]]
    assert len(times) == count if count <= MOST_SAMPLES else count // 20 < len(times) <= 300
    assert (times[0], times[-1]) == (-0.1, 2.0 * (count - 1))
    assert times == sorted(times)
    assert plain["running"] == (None if count == 2 else {"mean": 0.0, "max": 0.0})
    assert plain["prefix_cache_hit_rate"] == 0.25


def test_the_report_tells_it() -> None:
    gpu = GpuSample("a", "0", "H100", 0.5, 3 * 2.0**30, 8 * 2.0**30)
    looks = level(a=[FIRST, grown(1, running=2.0), grown(5)], b=[FIRST] * 3)
    server = seen(*(replace(look, gpus=(gpu,)) for look in looks))
    made = summary(requests(100))
    [first] = made.levels
    told = replace(made, levels=(replace(first, seen=replace(first.seen, server=server)),))
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render(told, plain=True))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    start = lines.index("servers run 2.0 on average, 2 at most")
    assert lines[start + 1 : start + 6] == [
        "servers queue 0.0 on average, 0 at most",
        "KV cache 10% full on average, 20% at most",
        "prefix cache 25% of 500 tokens",
        "GPUs 50% busy on average, 50% at most; memory 3.0 GiB at most",
        "replicas 2 (5, 0 requests)",
    ]
    assert told.to_json()["levels"][0]["server"]["requests"] == 5
    assert made.to_json()["levels"][0]["server"] is None
