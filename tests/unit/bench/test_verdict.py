from dataclasses import replace

import pytest

from raycluster.bench.record import Failure, RequestRecord
from raycluster.bench.server import ReplicaLife, ServerFigures
from raycluster.bench.stats import distribution, measure
from raycluster.bench.verdict import Circumstances, Client, judge

CALM = Circumstances(Client(distribution([0.1] * 100), 0.2), slots=8)


def records(
    good: int, failed: int = 0, *, failure: Failure = "timeout", cached: int | None = None
) -> list[RequestRecord]:
    one = RequestRecord(
        id="x",
        line=1,
        repeat=0,
        intended=0.0,
        sent=0.0,
        end=0.2,
        first_event=0.1,
        last_event=0.2,
        gaps=(0.1,),
        input_tokens=10,
        cached_tokens=cached,
        output_tokens=2,
    )
    return [one] * good + [replace(one, failure=failure)] * failed


def test_a_clean_level_is_valid() -> None:
    verdict = judge(measure(records(200)), CALM)
    assert (verdict.grade, verdict.reasons) == ("VALID", ())


@pytest.mark.parametrize(
    ("level", "seen", "grade", "reason"),
    [
        (records(199, 1), CALM, "SUSPECT", "1 of 200 requests failed (1 timeout)"),
        (records(180, 20), CALM, "INVALID", "20 of 200 requests failed (20 timeout)"),
        (records(0, 200), CALM, "INVALID", "200 of 200 requests failed (200 timeout)"),
        (records(99), CALM, "SUSPECT", "too few samples for p99: 99 answers"),
        (records(19), CALM, "SUSPECT", "too few samples for p95 and p99: 19 answers"),
        (records(200), replace(CALM, slots=256), "SUSPECT", "200 requests cannot fill 256 slots"),
        (records(200), replace(CALM, repeated=7), "SUSPECT", "7 requests repeat a prompt"),
        (records(200, cached=5), CALM, "SUSPECT", "50% of the input tokens came from"),
        (records(200), replace(CALM, interrupted=True), "SUSPECT", "interrupted"),
        (
            records(200),
            replace(CALM, client=Client(distribution([20.0]), 0.2)),
            "SUSPECT",
            "client-bound: its event loop lagged by 20.0 ms",
        ),
        (
            records(200),
            replace(CALM, client=Client(distribution([80.0]), 0.2)),
            "INVALID",
            "client-bound: its event loop lagged by 80.0 ms",
        ),
        (
            records(200),
            replace(CALM, client=Client(None, 0.9)),
            "SUSPECT",
            "client-bound: sending and reading took 90% of a core",
        ),
        (
            [replace(record, intended=-1.0) for record in records(200)],
            replace(CALM, slots=None, rate=10.0),
            "SUSPECT",
            "requests waited in the client for 1000 ms",
        ),
        (
            [replace(record, output_tokens=None) for record in records(200)],
            CALM,
            "SUSPECT",
            "some responses had no usage field",
        ),
    ],
)
def test_says_why_figures_cannot_be_believed(
    level: list[RequestRecord], seen: Circumstances, grade: str, reason: str
) -> None:
    verdict = judge(measure(level), seen)
    assert verdict.grade == grade
    assert any(text.startswith(reason) for text in verdict.reasons), verdict.reasons


def test_salted_repeats_are_not_suspect() -> None:
    verdict = judge(measure(records(200)), replace(CALM, repeated=7, salted=True))
    assert verdict.grade == "VALID"


QUIET = ServerFigures(
    running=None,
    waiting=None,
    kv_cache_usage=None,
    gpu_utilization=None,
    gpu_memory_bytes=None,
    prompt_tokens=2000,
    generation_tokens=400,
    prefix_cache_queries=2000,
    prefix_cache_hits=0,
    preemptions=0,
    requests=200,
    fewest_replicas=2,
    most_replicas=2,
    replicas=(ReplicaLife("a:1", 90, 180, None, None), ReplicaLife("b:1", 110, 220, None, None)),
    gpus=(),
    unanswered=0,
    samples=(),
)
WATCHED = replace(CALM, generated=400, server=QUIET)


def hits(count: int, **seen: object) -> Circumstances:
    return replace(WATCHED, server=replace(QUIET, prefix_cache_hits=count), **seen)  # type: ignore[arg-type]


def shared(*requests: int) -> Circumstances:
    """Return what is seen when each replica took so many requests."""
    took = tuple(ReplicaLife(f"{n}:1", count, None, None, None) for n, count in enumerate(requests))
    return replace(WATCHED, server=replace(QUIET, replicas=took))


def moved(came: float | None, went: float | None) -> Circumstances:
    """Return what is seen when one replica came and another went, after so many seconds."""
    first, second = QUIET.replicas
    replicas = (replace(first, went=went), replace(second, came=came))
    server = replace(QUIET, replicas=replicas, fewest_replicas=1)
    return replace(WATCHED, server=server)


@pytest.mark.parametrize(
    "seen",
    [
        WATCHED,
        replace(WATCHED, repeated=7),  # what is measured counts more than what might be
        hits(90),
        hits(1900, prefix_expected=True),
        hits(90, repeated=7, salted=True),
        shared(60, 40),
        shared(19, 5),
        replace(WATCHED, generated=340),
        replace(WATCHED, generated=None),
    ],
)
def test_servers_that_did_as_expected_are_no_finding(seen: Circumstances) -> None:
    assert judge(measure(records(200)), seen).reasons == ()


@pytest.mark.parametrize(
    ("seen", "grade", "reason"),
    [
        (
            hits(200),
            "SUSPECT",
            "10% of the input tokens came from the prefix cache although this run repeats no "
            "prompt",
        ),
        (
            hits(500, repeated=7, salted=True),
            "SUSPECT",
            "25% of the input tokens came from the prefix cache despite --salt",
        ),
        (
            hits(50, repeated=7),
            "SUSPECT",
            "2% of the input tokens came from the prefix cache: 7 requests repeat a prompt",
        ),
        (shared(61, 40), "SUSPECT", "load was uneven: 0:1 served 61 of 101 requests, 1:1 40"),
        (moved(None, 4.0), "SUSPECT", "the number of replicas changed, between 1 and 2"),
        (moved(4.0, None), "SUSPECT", "the number of replicas changed, between 1 and 2"),
        (
            moved(9.0, 4.2),
            "INVALID",
            "a replica ended and another started: a:1 last responded after 4 s",
        ),
        (
            replace(WATCHED, server=replace(QUIET, preemptions=3)),
            "SUSPECT",
            "3 preemptions: the KV cache was full",
        ),
        (
            replace(WATCHED, generated=300),
            "SUSPECT",
            "the servers generated 100 tokens for other clients during the run",
        ),
    ],
)
def test_says_what_the_servers_did(seen: Circumstances, grade: str, reason: str) -> None:
    verdict = judge(measure(records(200)), seen)
    assert verdict.grade == grade
    [text] = verdict.reasons
    assert text.startswith(reason)


def test_tokens_of_failed_requests_are_nobody_elses() -> None:
    verdict = judge(measure(records(199, 1)), replace(WATCHED, generated=300))
    assert verdict.reasons == ("1 of 200 requests failed (1 timeout)",)
