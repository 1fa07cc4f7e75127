from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace

import pytest

from raycluster.bench.export import COLUMNS, to_vllm, write_csv
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load, Open
from raycluster.bench.stats import measure
from raycluster.bench.summary import BenchSummary
from tests.unit.bench.level import requests, summary


def one(sent: float, *events: float, **changes: object) -> RequestRecord:
    """Return a request with events so many seconds after sending, and a token for each."""
    at = [sent + event for event in events]
    record = RequestRecord(
        "x", 1, 0, sent, sent, at[-1] + 0.01, first_event=at[0], last_event=at[-1]
    )
    gaps = tuple(b - a for a, b in itertools.pairwise(events))
    return replace(record, gaps=gaps, input_tokens=5, output_tokens=len(events), **changes)  # type: ignore[arg-type]


def rows(*levels: list[RequestRecord]) -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    write_csv(levels, file)
    return list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))


def test_the_table_has_every_scalar_of_every_request() -> None:
    levels = [requests(3, failed=0.5), requests(2)]
    read = rows(*levels)
    assert tuple(read[0]) == COLUMNS
    assert [row["level"] for row in read] == ["0", "0", "0", "1", "1"]
    for row, record in zip(read, [r for level in levels for r in level], strict=True):
        values = record.to_json()
        assert values.keys() - row.keys() == {"gaps"}
        for name in row.keys() - {"level"}:
            assert row[name] == ("" if values[name] is None else str(values[name]))


@pytest.mark.parametrize(
    ("detail", "cell"),
    [
        ('a "b", c\nd;', 'a "b", c\nd;'),
        ("=HYPERLINK()", "'=HYPERLINK()"),
        ("@x", "'@x"),
        ("-1", "'-1"),
        ("é=", "é="),
    ],
)
def test_texts_survive_and_are_no_formulas(detail: str, cell: str) -> None:
    [row] = rows([replace(requests(1)[0], failure="protocol", detail=detail)])
    assert row["detail"] == cell


def test_vllms_arrays_and_units() -> None:
    records = [
        one(1.5, 0.2, 0.3),
        one(0.5, 0.1, 0.15, 0.35, intended=0.25),
        replace(one(0.7, 0.4), failure="truncated", detail="cut", output_tokens=None),
    ]
    run = summary(records)
    result = to_vllm(run, 0, records, backend="openai")
    assert result["start_times"] == [0.5, 0.7, 1.5]
    assert result["ttfts"] == pytest.approx([0.1, 0.4, 0.2])
    assert result["latencies"] == pytest.approx([0.35, 0.4, 0.3])
    assert result["itls"] == [pytest.approx([0.05, 0.2]), [], pytest.approx([0.1])]
    assert result["queue_times"] == pytest.approx([0.25, 0, 0])
    assert result["input_lens"] == [5, 5, 5]
    assert result["output_lens"] == [3, 0, 2]
    assert result["errors"] == ["", "truncated: cut", ""]
    assert (result["completed"], result["failed"], result["num_prompts"]) == (2, 1, 3)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (10, 5)
    assert result["median_ttft_ms"] == pytest.approx(150)
    assert result["p99_itl_ms"] == pytest.approx(199, rel=0.01)
    assert result["mean_tpot_ms"] == pytest.approx((125 + 100) / 2)
    # Seconds from the first sending: three events in the first, two in the second.
    assert result["max_output_tokens_per_s"] == 3.0
    assert result["max_concurrent_requests"] == 1
    assert (result["backend"], result["endpoint_type"]) == ("openai", "openai")
    assert (result["request_rate"], result["burstiness"]) == ("inf", 1.0)
    assert result["max_concurrency"] == 1
    assert "generated_texts" not in result


def test_an_open_loop_has_its_rate() -> None:
    records = requests(5)
    run = summary(records)
    level = replace(run.levels[0], shape=Open(2.5, 7, 0.5))
    result = to_vllm(replace(run, levels=(level,)), 0, records)
    assert (result["request_rate"], result["burstiness"]) == (2.5, 0.5)
    assert result["max_concurrency"] == 7


def test_what_is_not_known_is_null_or_zero() -> None:
    records = [replace(r, output_tokens=None, input_tokens=None) for r in requests(2)]
    result = to_vllm(summary(records), 0, records)
    assert result["output_lens"] == result["input_lens"] == [None, None]
    names = ("total_input_tokens", "total_output_tokens", "output_throughput")
    assert [result[name] for name in names] == [None, None, None]
    assert result["median_tpot_ms"] == 0.0
    failed = [replace(RequestRecord("x", 1, 0, 0.0, 0.0, 1.0), failure="connect", detail="refused")]
    result = to_vllm(summary(failed), 0, failed)
    assert result["ttfts"] == result["latencies"] == [0.0]
    assert result["output_lens"] == result["input_lens"] == [0]
    assert (result["p99_e2el_ms"], result["max_concurrent_requests"]) == (0.0, 0)


def test_the_ramp_is_left_out() -> None:
    records = requests(40)
    ramp = records[20].intended
    steady = [record for record in records if record.intended >= ramp]
    level = replace(summary(records).levels[0], measures=measure(steady))
    run = BenchSummary(0.0, "http://x/v1", "m", Load((Closed(1),), ramp=ramp), (level,))
    result = to_vllm(run, 0, records)
    assert result["num_prompts"] == len(result["ttfts"]) == result["completed"] == len(steady)
    assert 0 < len(steady) < 40
