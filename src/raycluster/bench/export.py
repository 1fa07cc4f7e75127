"""Results in others' formats: a table of requests, and the file of `vllm bench serve`; pure."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, TextIO

from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Open
from raycluster.bench.stats import SampleStats
from raycluster.bench.summary import BenchSummary

COLUMNS = ("level", *(field.name for field in fields(RequestRecord) if field.name != "gaps"))
_STATS = ("p90", "p95", "p99")
_FIGURES = (
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
)


def write_csv(levels: Iterable[Sequence[RequestRecord]], file: TextIO) -> None:
    """Write a head, and a row for each request with the scalar fields of its record.

    Seconds have microseconds; what is not known is empty. Texts that a spreadsheet would take for
    a formula begin with an apostrophe. `file` was opened with `newline=""`.
    """
    rows = csv.writer(file)
    rows.writerow(COLUMNS)
    for number, records in enumerate(levels):
        for record in records:
            values = replace(record, gaps=()).to_json() | {"level": number}
            rows.writerow([_cell(values[name]) for name in COLUMNS])


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def to_vllm(
    summary: BenchSummary,
    number: int,
    records: Sequence[RequestRecord],
    *,
    backend: str = "openai-chat",
) -> dict[str, Any]:
    """Return a level as vLLM 0.32's `bench serve --save-result --save-detailed` writes it.

    `records` are those of level `number`, `backend` is vLLM's name of the API: openai-chat or
    openai. Requests are in the order of sending, without those before the ramp's end. Times in
    arrays are in seconds, `start_times` from the level's begin; statistics are in ms, and 0 without
    a sample, as there. A failed request has the times that were seen, and no output tokens.

    Otherwise than there: no `generated_texts`, since texts are not kept; tokens are those of the
    server's usage, and null with all that is made of them where it sent none; `tokenizer_id` is
    the model; a queue time is the wait after the moment that the schedule wanted, which in a
    closed loop is next to nothing, while vLLM's client queues the whole file at once. `itls` are
    gaps between events, as there, with several tokens an event too.
    """
    level = summary.levels[number]
    shape, measures = level.shape, level.measures
    steady = [record for record in records if record.intended >= summary.load.ramp]
    sent = sorted(steady, key=lambda record: record.sent)
    arrays = {
        "input_lens": [r.input_tokens if r.ok else r.input_tokens or 0 for r in sent],
        "output_lens": [r.output_tokens if r.ok else 0 for r in sent],
        "ttfts": [_since(r, r.first_event) for r in sent],
        "itls": [list(record.gaps) for record in sent],
        "latencies": [_since(r, r.last_event) for r in sent],
        "start_times": [record.sent for record in sent],
        "queue_times": [record.sent - record.intended for record in sent],
        "errors": [f"{r.failure}: {r.detail}" if r.failure else "" for r in sent],
    }
    busiest, together = _by_second([record for record in sent if record.ok])
    result: dict[str, Any] = {
        "date": datetime.fromtimestamp(summary.started).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": summary.model,
        "tokenizer_id": summary.model,
        "num_prompts": len(sent),
        "request_rate": shape.rate if isinstance(shape, Open) else "inf",
        "burstiness": shape.burstiness if isinstance(shape, Open) else 1.0,
        "max_concurrency": shape.concurrency,
        **{name: getattr(measures, name) for name in _FIGURES},
        **arrays,
        "max_output_tokens_per_s": busiest,
        "max_concurrent_requests": together,
        "rtfx": 0.0,
    }
    spreads = {
        "ttft": measures.ttft_ms,
        "tpot": measures.tpot_ms,
        "itl": measures.event_gap_ms,
        "e2el": measures.e2el_ms,
    }
    for name, spread in spreads.items():
        result |= _statistics(name, spread)
    return result


def _statistics(name: str, spread: SampleStats | None) -> dict[str, float]:
    named = {"mean": "mean", "median": "p50", "std": "std"} | {stat: stat for stat in _STATS}
    return {
        f"{theirs}_{name}_ms": 0.0 if spread is None else getattr(spread, ours)
        for theirs, ours in named.items()
    }


def _since(record: RequestRecord, moment: float | None) -> float:
    return 0.0 if moment is None else moment - record.sent


def _by_second(answered: Sequence[RequestRecord]) -> tuple[float, int]:
    """Return the most events within a second, and the most requests that one of them touched.

    Seconds count from the first sending; only requests with an answer count, as in vLLM.
    """
    if not answered:
        return 0.0, 0
    begin = min(record.sent for record in answered)
    ends = [record.sent + _since(record, record.last_event) for record in answered]
    count = math.ceil(max(ends) - begin) + 1
    events, steps = [0] * count, [0] * (count + 1)
    for record, end in zip(answered, ends, strict=True):
        moment = record.sent + _since(record, record.first_event)
        events[min(int(moment - begin), count - 1)] += 1
        for gap in record.gaps:
            moment += gap
            events[min(int(moment - begin), count - 1)] += 1
        steps[int(record.sent - begin)] += 1
        steps[int(end - begin) + 1] -= 1
    now = most = 0
    for step in steps:
        now += step
        most = max(most, now)
    return float(max(events)), most
