import json
from typing import Any

import pytest

from raycluster.bench.baseline import compare, parse_share, read_baseline
from raycluster.bench.schedule import Closed
from raycluster.core.errors import MissedLimitError, UsageError

SHAPES = (Closed(1), Closed(8))


def run(ttft: float | None = 100.0, throughput: float = 10.0, **changes: Any) -> dict[str, Any]:
    level = {
        "ttft_ms": None if ttft is None else {"p50": ttft, "p95": ttft},
        "request_throughput": throughput,
        "output_throughput": None,
    }
    return {
        "schema": 1,
        "kind": "bench",
        "verdict": "VALID",
        "dataset": {"digest": "a"},
        "load": {"repeat": 1},
        "target": {"model": "m", "base_url": "x"},
        "levels": [{"load": shape.to_json(), **level} for shape in SHAPES],
    } | changes


def test_tells_worse_from_better() -> None:
    comparison = compare(run(), run(ttft=110.0, throughput=12.0), SHAPES[:1])
    worse = {(c.where, c.name): round(c.worse, 6) for c in comparison.changes}
    assert worse == {
        ("concurrency 1", "ttft_p50"): 0.1,
        ("concurrency 1", "ttft_p95"): 0.1,
        ("concurrency 1", "request_throughput"): -0.2,
    }
    assert comparison.doubts == ()


def test_a_limit_on_the_change() -> None:
    comparison = compare(run(), run(ttft=110.0), SHAPES)
    comparison.check(0.1 + 1e-9)
    with pytest.raises(MissedLimitError, match=r"concurrency 8: ttft_p95 100.00 -> 110.00"):
        comparison.check(0.05)


def test_what_is_no_longer_measured_is_worse() -> None:
    with pytest.raises(MissedLimitError):
        compare(run(), run(ttft=None), SHAPES).check(10.0)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"verdict": "INVALID"}, "this run is INVALID"),
        ({"dataset": {"digest": "b"}}, "the prompts differ"),
        ({"load": {"repeat": 2}}, "load differs"),
        ({"target": {"model": "n", "base_url": "x"}}, "target differs"),
        ({"target": {"model": "m", "base_url": "y"}}, None),
    ],
)
def test_says_what_speaks_against_comparing(changes: dict[str, Any], doubt: str | None) -> None:
    comparison = compare(run(), run(**changes), SHAPES)
    assert comparison.doubts == (() if doubt is None else (doubt,))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not JSON"),
        (b"[]", "not a result of raycluster bench"),
        (b'{"kind": "status", "schema": 1}', "not a result of raycluster bench"),
        (b'{"kind": "bench", "schema": 1}', "not a result of raycluster bench"),
        (json.dumps(run(schema=2)).encode(), "its schema version is 2, not 1"),
        (json.dumps(run(levels=[])).encode(), "none of this run's load levels"),
    ],
)
def test_refuses_what_is_no_baseline(content: bytes, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_baseline(content, SHAPES, schema=1, where="before.json")


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "-1%", "nan", "inf", "five"])
def test_refuses_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError):
        parse_share(text)
