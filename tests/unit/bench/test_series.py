from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from raycluster.bench import series
from raycluster.bench.stats import measure
from tests.unit.bench.level import requests


def spans(line: series.Timeline, end: float) -> list[float]:
    """Return how long each bin is; the last one reaches to the end."""
    count = len(line.at)
    return [line.width] * (count - 1) + [max(end, line.width) - (count - 1) * line.width]


def test_few_samples_are_all_in_the_curve() -> None:
    assert series.curve([3.0, 1.0, 2.0, 2.0]) == (
        [1.0, 1.0, 2.0, 2.0, 3.0],
        [0.0, 0.25, 0.5, 0.75, 1.0],
    )


def test_the_curve_of_many_samples_has_few_points_and_a_fine_tail() -> None:
    xs, ys = series.curve([float(value) for value in range(100_000, 0, -1)])
    assert len(xs) == len(ys) <= series.CURVE + 3
    assert (xs[0], xs[-1], ys[0], ys[-1]) == (1.0, 100_000.0, 0.0, 1.0)
    assert all(y == pytest.approx(x / 100_000) for x, y in zip(xs[1:], ys[1:], strict=True))
    assert sum(y > 0.99 for y in ys) >= series.CURVE // 3
    assert max(b - a for a, b in itertools.pairwise(ys)) < 0.006


@pytest.mark.parametrize("count", [1, 7, 400])
def test_the_timeline_counts_every_request_once(count: int) -> None:
    records = requests(count, failed=0.2)
    end = max(record.end for record in records)
    line = series.timeline(records)
    for rates, wanted in (
        (line.sent, count),
        (line.completed, sum(record.ok for record in records)),
        (line.failed, sum(not record.ok for record in records)),
    ):
        counts = [rate * span for rate, span in zip(rates, spans(line, end), strict=True)]
        assert sum(counts) == pytest.approx(wanted)


def test_the_timeline_shows_how_many_are_in_flight() -> None:
    records = requests(200, slots=5)
    end = max(record.end for record in records)
    line = series.timeline(records)
    area = sum(n * span for n, span in zip(line.in_flight, spans(line, end), strict=True))
    assert area == pytest.approx(
        measure(records).mean_in_flight * (end - records[0].intended), 0.01
    )
    assert max(line.in_flight) <= 5
    assert line.in_flight[len(line.at) // 2] == pytest.approx(5, rel=0.05)


def test_latency_stands_where_the_request_was_sent() -> None:
    early, late = requests(1)[0], requests(1, seed=1)[0]
    moved = replace(
        late, **{k: getattr(late, k) + 10 for k in ("intended", "sent", "first_event", "end")}
    )
    line = series.timeline([early, moved])
    assert [value is not None for value in line.ttft_p50].count(True) == 2
    first, last = [value for value in line.ttft_p95 if value is not None]
    assert first == pytest.approx(((early.first_event or 0) - early.sent) * 1e3)
    assert last == pytest.approx(((late.first_event or 0) - late.sent) * 1e3)


@pytest.mark.parametrize(
    ("duration", "count", "width"),
    [
        (300, 100_000, 2),
        (60, 100_000, 0.5),
        (18, 64, 2),
        (10, 1, 2),
        (0.004, 3, 0.001),
        (0, 1, 0.001),
    ],
)
def test_a_bin_is_a_round_time(duration: float, count: int, width: float) -> None:
    assert series.bin_width(duration, count) == pytest.approx(width)


def test_the_ramp_is_in_the_timeline_alone() -> None:
    records = requests(100)
    middle = records[50].intended
    whole, steady = series.sketch(records), series.sketch(records, middle)
    assert whole.timeline == steady.timeline
    later = [record for record in records if record.intended >= middle]
    assert 0 < len(steady.curves["TTFT"][0]) - 1 == len(later) < 100


def test_failed_requests_have_no_latency() -> None:
    records = [replace(record, failure="timeout") for record in requests(5)]
    assert series.sketch(records).curves == {}


def test_very_many_gaps_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    records = requests(500, tokens=20)
    exact = series.sketch(records).curves["gaps"]
    monkeypatch.setattr(series, "GAPS", 5000)
    drawn = series.sketch(records).curves["gaps"]
    assert drawn == series.sketch(records).curves["gaps"]
    assert drawn != exact
    for share in (0.1, 0.5, 0.9):
        values = [
            next(x for x, y in zip(*points, strict=True) if y >= share) for points in (exact, drawn)
        ]
        assert values[1] == pytest.approx(values[0], rel=0.05)


def test_server_samples_may_lack_anything() -> None:
    samples: list[dict[str, object]] = [
        {"t": 0.0, "running": 1, "waiting": None},
        {"t": 1.0, "kv_cache_usage": 0.5, "replicas": float("nan")},
        {"running": 9},
        {"t": 2.0, "running": 3, "gpu_memory_bytes": "many"},
    ]
    assert series.server(samples) == {
        "running": ([0.0, 1.0, 2.0], [1.0, None, 3.0]),
        "kv_cache_usage": ([0.0, 1.0, 2.0], [None, 0.5, None]),
    }
    assert series.server([]) == {}


def test_many_server_samples_become_means() -> None:
    samples = [{"t": float(at), "running": at % 2} for at in range(4000)]
    times, values = series.server(samples)["running"]
    assert len(times) == series.SAMPLES
    assert set(values) == {0.5}
    assert times[:2] == [4.5, 14.5]
