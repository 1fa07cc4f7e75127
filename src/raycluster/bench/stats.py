"""Records -> figures, with the definitions of `vllm bench serve`; pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raycluster.bench.record import FAILURES, RequestRecord

SINGLE_TOKEN_EVENTS = 1.05
"""Up to this many tokens per event, the gaps between events are gaps between tokens."""


@dataclass(frozen=True)
class SampleStats:
    """Figures over `count` samples; percentiles interpolate linearly."""

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile of one or more sorted values, linear between the two nearest."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def distribution(samples: Iterable[float]) -> SampleStats | None:
    """Return the figures over the samples, None when there is none."""
    ordered = sorted(samples)
    if not ordered:
        return None
    mean = math.fsum(ordered) / len(ordered)
    variance = math.fsum((value - mean) ** 2 for value in ordered) / len(ordered)
    p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
    spread = math.sqrt(variance)
    return SampleStats(len(ordered), mean, spread, ordered[0], p50, p90, p95, p99, ordered[-1])


@dataclass(frozen=True)
class Measures:
    """The figures of one level. Times are in ms, throughputs per second, `duration` in seconds.

    A latency counts from sending; its twin `*_from_intended_ms` from when the schedule wanted the
    request sent, which includes `client_delay_ms`. `itl_ms` is None when events carry several
    tokens: then only `event_gap_ms` was measured. Throughputs of tokens are None where a server
    sent no usage. `request_goodput` counts the requests that keep their bounds.
    """

    completed: int
    failed: int
    error_rate: float
    errors: dict[str, int]
    duration: float
    request_throughput: float
    total_input_tokens: int | None
    total_cached_tokens: int | None
    total_output_tokens: int | None
    output_throughput: float | None
    total_token_throughput: float | None
    tokens_per_event: float | None
    max_in_flight: int
    mean_in_flight: float
    ttft_ms: SampleStats | None
    tpot_ms: SampleStats | None
    itl_ms: SampleStats | None
    event_gap_ms: SampleStats | None
    e2el_ms: SampleStats | None
    first_text_ms: SampleStats | None
    ttft_from_intended_ms: SampleStats | None
    e2el_from_intended_ms: SampleStats | None
    client_delay_ms: SampleStats | None
    request_goodput: float | None = None


@dataclass(frozen=True)
class Bound:
    """What one request may take at most, in ms: its `ttft`, `tpot` or `e2el`."""

    name: str
    most: float


def measure(records: Sequence[RequestRecord], goodput: Sequence[Bound] = ()) -> Measures:
    """Return the figures of one level's records, of which there is at least one."""
    good = [record for record in records if record.ok]
    failures = Counter(record.failure for record in records if record.failure is not None)
    duration = max(record.end for record in records) - min(record.sent for record in records)
    tokens_in, tokens_out = _total(good, "input_tokens"), _total(good, "output_tokens")
    tokens = None if tokens_in is None or tokens_out is None else tokens_in + tokens_out
    per_event = _tokens_per_event(good)
    gaps = distribution(gap * 1e3 for record in good for gap in record.gaps)
    one_each = per_event is not None and per_event <= SINGLE_TOKEN_EVENTS
    return Measures(
        completed=len(good),
        failed=len(records) - len(good),
        error_rate=(len(records) - len(good)) / len(records),
        errors={name: failures[name] for name in FAILURES if failures[name]},
        duration=duration,
        request_throughput=_per_second(len(good), duration),
        total_input_tokens=tokens_in,
        total_cached_tokens=_total(good, "cached_tokens"),
        total_output_tokens=tokens_out,
        output_throughput=None if tokens_out is None else _per_second(tokens_out, duration),
        total_token_throughput=None if tokens is None else _per_second(tokens, duration),
        tokens_per_event=per_event,
        max_in_flight=max_in_flight(records),
        mean_in_flight=_per_second(math.fsum(r.end - r.sent for r in records), duration),
        ttft_ms=_from(good, "sent", "first_event"),
        tpot_ms=distribution(value for record in good for value in tpot_of(record)),
        itl_ms=gaps if one_each else None,
        event_gap_ms=gaps,
        e2el_ms=_from(good, "sent", "last_event"),
        first_text_ms=_from(good, "sent", "first_token"),
        ttft_from_intended_ms=_from(good, "intended", "first_event"),
        e2el_from_intended_ms=_from(good, "intended", "last_event"),
        client_delay_ms=_from(records, "intended", "sent"),
        request_goodput=(
            _per_second(sum(_keeps(record, goodput) for record in good), duration)
            if goodput
            else None
        ),
    )


def max_in_flight(records: Iterable[RequestRecord]) -> int:
    """Return the most requests that were under way at one moment."""
    steps = sorted([(r.sent, 1) for r in records] + [(r.end, -1) for r in records])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _keeps(record: RequestRecord, bounds: Iterable[Bound]) -> bool:
    """Return whether the request keeps all bounds; an answer of one token has no TPOT to keep."""
    taken = {
        "ttft": [((record.first_event or 0.0) - record.sent) * 1e3],
        "tpot": tpot_of(record),
        "e2el": [((record.last_event or 0.0) - record.sent) * 1e3],
    }
    return all(value <= bound.most for bound in bounds for value in taken[bound.name])


def tpot_of(record: RequestRecord) -> list[float]:
    """Return (E2EL - TTFT) / (tokens - 1) in ms; nothing for an answer of fewer than two tokens."""
    tokens, first, last = record.output_tokens, record.first_event, record.last_event
    if tokens is None or tokens < 2 or first is None or last is None:
        return []
    return [(last - first) / (tokens - 1) * 1e3]


def _from(records: Iterable[RequestRecord], begin: str, end: str) -> SampleStats | None:
    pairs = ((getattr(record, begin), getattr(record, end)) for record in records)
    return distribution((late - early) * 1e3 for early, late in pairs if late is not None)


def _total(records: Iterable[RequestRecord], name: str) -> int | None:
    """Return the sum of a count, None where any record lacks it."""
    counts = [getattr(record, name) for record in records]
    return sum(counts) if counts and None not in counts else None


def _tokens_per_event(records: Iterable[RequestRecord]) -> float | None:
    counted = [r for r in records if r.output_tokens is not None and r.events]
    events = sum(record.events for record in counted)
    return sum(r.output_tokens or 0 for r in counted) / events if events else None


def _per_second(amount: float, duration: float) -> float:
    return amount / duration if duration > 0 else 0.0
