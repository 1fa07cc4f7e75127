"""Records -> few enough points to draw, however many requests there were; pure."""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.bench.record import RequestRecord
from raycluster.bench.stats import percentile, tpot_of

Points = tuple[list[float], list[float]]

CURVE = 300
"""Steps of a distribution's curve; a third of them lie above its 99th percentile."""
BINS = 150
SAMPLES = 400
GAPS = 100_000
"""More gaps between events than this are drawn from, with replacement, and with a fixed seed."""
SERVER = ("running", "waiting", "kv_cache_usage", "gpu_utilization", "gpu_memory_bytes", "replicas")


@dataclass(frozen=True)
class Timeline:
    """What happened in each bin; rates are per second.

    `edges` are where the bins begin, and where the last one ends, `at` are their middles, in
    seconds since the level began; the last bin is up to twice as long as `width`.
    `in_flight` is the mean over the bin's time. Latencies, in ms, are those of the requests sent
    in the bin, None where none of them was answered.
    """

    edges: list[float]
    at: list[float]
    width: float
    sent: list[float]
    completed: list[float]
    failed: list[float]
    in_flight: list[float]
    ttft_p50: list[float | None]
    ttft_p95: list[float | None]


@dataclass(frozen=True)
class Sketch:
    """What the plots of one level need: a curve for each latency in ms, and a timeline."""

    curves: Mapping[str, Points]
    timeline: Timeline


def sketch(records: Sequence[RequestRecord], ramp: float = 0.0) -> Sketch:
    """Return the points of one level's records, of which there is at least one.

    What was due before `ramp` (seconds) is in the timeline alone, as it is not in the figures.
    """
    good = [record for record in records if record.ok and record.intended >= ramp]
    samples = {
        "TTFT": [_ms(r.sent, r.first_event) for r in good if r.first_event is not None],
        "TPOT": [value for record in good for value in tpot_of(record)],
        "gaps": _gaps(good),
        "E2EL": [_ms(r.sent, r.last_event) for r in good if r.last_event is not None],
    }
    curves = {name: curve(values) for name, values in samples.items() if values}
    return Sketch(curves, timeline(records))


def curve(values: Sequence[float]) -> Points:
    """Return values and the share of samples up to each: all, or CURVE of them; at least one."""
    ordered = sorted(values)
    last = len(ordered) - 1
    if last < CURVE:
        places = list(range(last + 1))
    else:
        body, tail = 2 * CURVE // 3, CURVE // 3
        shares = [step / body for step in range(body)]
        shares += [0.99 + 0.01 * step / tail for step in range(tail + 1)]
        places = sorted({round(share * last) for share in shares})
    xs = [ordered[0], *(ordered[place] for place in places)]
    return xs, [0.0, *((place + 1) / (last + 1) for place in places)]


def timeline(records: Sequence[RequestRecord]) -> Timeline:
    """Return what happened over the time from the level's start to its last request's end."""
    end = max(record.end for record in records)
    width = bin_width(end, len(records))
    count = max(1, math.floor(end / width + 1e-9))
    edges = [index * width for index in range(count)] + [max(end, width)]
    spans = [late - early for early, late in itertools.pairwise(edges)]

    def place(moment: float) -> int:
        return min(max(bisect_right(edges, moment) - 1, 0), count - 1)

    def rates(moments: Iterator[float]) -> list[float]:
        found = Counter(place(moment) for moment in moments)
        return [found[index] / spans[index] for index in range(count)]

    first: list[list[float]] = [[] for _ in spans]
    for record in records:
        if record.ok and record.first_event is not None:
            first[place(record.sent)].append(_ms(record.sent, record.first_event))
    for values in first:
        values.sort()
    return Timeline(
        edges=edges,
        at=[edge + span / 2 for edge, span in zip(edges, spans, strict=False)],
        width=width,
        sent=rates(record.sent for record in records),
        completed=rates(record.end for record in records if record.ok),
        failed=rates(record.end for record in records if not record.ok),
        in_flight=_in_flight(records, edges),
        ttft_p50=[percentile(values, 50) if values else None for values in first],
        ttft_p95=[percentile(values, 95) if values else None for values in first],
    )


def bin_width(duration: float, count: int) -> float:
    """Return 1, 2 or 5 times a power of ten seconds: at most BINS bins, each with some requests."""
    wanted = max(duration / BINS, min(duration * 5 / count, duration / 8), 1e-3)
    power = 10.0 ** math.floor(math.log10(wanted))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= wanted * 0.999))


def server(samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[Any]]]:
    """Return times and values of each figure that the server's samples have; None is a gap.

    More than SAMPLES become means over as many stretches.
    """
    step = math.ceil(len(samples) / SAMPLES) or 1
    stretches = [samples[start : start + step] for start in range(0, len(samples), step)]
    found = {}
    for name in SERVER:
        values = [_mean(sample.get(name) for sample in stretch) for stretch in stretches]
        times = [_mean(sample.get("t") for sample in stretch) for stretch in stretches]
        known = [(at, value) for at, value in zip(times, values, strict=True) if at is not None]
        if any(value is not None for _, value in known):
            found[name] = ([at for at, _ in known], [value for _, value in known])
    return found


def _in_flight(records: Sequence[RequestRecord], edges: Sequence[float]) -> list[float]:
    steps = sorted([(r.sent, 1) for r in records] + [(r.end, -1) for r in records])
    means, now, place = [], 0, 0
    for early, late in itertools.pairwise(edges):
        area, moment = 0.0, early
        while place < len(steps) and steps[place][0] < late:
            at = max(steps[place][0], early)
            area += now * (at - moment)
            now, moment = now + steps[place][1], at
            place += 1
        means.append((area + now * (late - moment)) / (late - early))
    return means


def _gaps(records: Sequence[RequestRecord]) -> list[float]:
    """Return the gaps between events in ms; of very many, a sample."""
    lengths = [len(record.gaps) for record in records]
    if sum(lengths) <= GAPS:
        return [gap * 1e3 for record in records for gap in record.gaps]
    chance = random.Random(0)  # noqa: S311  # not for secrets: the page of a run is always the same
    picked = chance.choices(records, weights=lengths, k=GAPS)
    return [chance.choice(record.gaps) * 1e3 for record in picked]


def _ms(begin: float, end: float) -> float:
    return (end - begin) * 1e3


def _mean(values: Iterator[Any]) -> float | None:
    known = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return math.fsum(known) / len(known) if known else None
