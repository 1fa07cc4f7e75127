"""The figures of a drill, and what may be asserted of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raycluster.core.errors import UsageError
from raycluster.drill.load import DrillRequest
from raycluster.drill.report import Report, parse

REPORT = Report(
    cluster="q",
    fault="worker",
    victim="the worker on gpu-1",
    rate=5.0,
    answers=(
        DrillRequest(0.0, 0.1, 200),
        DrillRequest(1.0, 0.3, 200),
        DrillRequest(10.5, 2.0, 200, retried=True),
        DrillRequest(11.0, 4.0, 200, tried=2),
        DrillRequest(12.0, 1.0, 503, "busy"),
        DrillRequest(13.0, 1.0, 200, "cut", stream=True, truncated=True),
        DrillRequest(40.0, 9.0, 200),
    ),
    began=10.0,
    injected_at=10.25,
    ended=30.0,
    detect=1.5,
    recover=20.0,
)


def test_what_is_counted() -> None:
    counts = (REPORT.requests, REPORT.failed, REPORT.truncated, REPORT.retried)
    assert counts == (7, 1, 1, 2)
    assert REPORT.p99 == pytest.approx(3.98)  # of 2 s and 4 s: those sent during the fault
    assert REPORT.calm_p99 == pytest.approx(0.298)


def test_failures_are_shown_with_the_time_since_the_fault() -> None:
    shown = REPORT.to_json()["failures"]
    assert shown == [
        {"after_fault_s": 2.0, "truncated": False, "status": 503, "why": "busy"},
        {"after_fault_s": 3.0, "truncated": True, "status": 200, "why": "cut"},
    ]
    assert REPORT.to_json()["inject_s"] == 0.25
    assert "+2.0 s: busy" in REPORT.text()


def test_an_answer_that_is_no_stream_and_was_cut_has_failed() -> None:
    whole = replace(REPORT, answers=(DrillRequest(12.0, 1.0, 200, "cut", truncated=True),))
    assert (whole.failed, whole.truncated) == (1, 0)


@pytest.mark.parametrize(
    ("text", "miss"),
    [
        ("failed==1", ""),
        ("failed==0", "failed==0: it is 1"),
        ("truncated==0", "truncated==0: it is 1"),
        ("retried>=2", ""),
        ("recover<60s", ""),
        ("recover<=0.3m", "recover<=0.3m: it is 20 s"),
        ("detect<1000ms", "detect<1000ms: it is 1.5 s"),
        ("p99<4s", ""),
    ],
)
def test_limits(text: str, miss: str) -> None:
    assert parse(text).miss(REPORT) == miss


def test_what_never_came_misses_every_limit() -> None:
    assert (
        parse("recover<60s").miss(replace(REPORT, recover=None))
        == "recover<60s: not within the limit"
    )


@pytest.mark.parametrize("text", ["failed=0", "failed==0s", "p99<3", "speed>1", "", "recover<xs"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.hint
