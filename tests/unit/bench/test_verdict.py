from dataclasses import replace

import pytest

from raycluster.bench.record import Failure, Record
from raycluster.bench.stats import distribution, measure
from raycluster.bench.verdict import Circumstances, Client, judge

CALM = Circumstances(Client(distribution([0.1] * 100), 0.2), slots=8)


def records(
    good: int, failed: int = 0, *, failure: Failure = "timeout", cached: int | None = None
) -> list[Record]:
    one = Record(
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
        (records(200), replace(CALM, slots=256), "SUSPECT", "200 requests never fill 256 slots"),
        (records(200), replace(CALM, repeated=7), "SUSPECT", "7 requests repeat a prompt"),
        (records(200, cached=5), CALM, "SUSPECT", "50% of the input tokens came from"),
        (records(200), replace(CALM, interrupted=True), "SUSPECT", "interrupted"),
        (
            records(200),
            replace(CALM, client=Client(distribution([20.0]), 0.2)),
            "SUSPECT",
            "client-bound: its event loop was late by 20.0 ms",
        ),
        (
            records(200),
            replace(CALM, client=Client(distribution([80.0]), 0.2)),
            "INVALID",
            "client-bound: its event loop was late by 80.0 ms",
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
            "the server sent no usage",
        ),
    ],
)
def test_says_why_figures_cannot_be_believed(
    level: list[Record], seen: Circumstances, grade: str, reason: str
) -> None:
    verdict = judge(measure(level), seen)
    assert verdict.grade == grade
    assert any(text.startswith(reason) for text in verdict.reasons), verdict.reasons


def test_salted_repeats_are_not_suspect() -> None:
    verdict = judge(measure(records(200)), replace(CALM, repeated=7, salted=True))
    assert verdict.grade == "VALID"
