"""Levels of made-up requests, for the tests of what is made of them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.stats import measure
from raycluster.bench.summary import BenchSummary, Level
from raycluster.bench.verdict import Circumstances, Client, judge


def requests(
    count: int,
    slots: int = 4,
    *,
    tokens: int = 8,
    failed: float = 0.0,
    detail: str = "500: no room",
    seed: int = 0,
) -> list[RequestRecord]:
    """Return requests of a closed loop, in the order of their ends; a share of them failed."""
    chance = random.Random(seed)
    free = [0.0] * slots
    made = []
    for line in range(1, count + 1):
        slot = free.index(min(free))
        sent = free[slot] + 0.0005
        events = [sent + 0.05 * chance.uniform(0.5, 3)]
        events += itertools.accumulate(
            (0.01 * chance.uniform(0.5, 2) for _ in range(tokens - 1)), initial=events[0]
        )
        events = events[1:]
        record = RequestRecord(
            id=str(line),
            line=line,
            repeat=0,
            intended=free[slot],
            sent=sent,
            end=events[-1] + 0.001,
            headers=events[0] - 0.001,
            first_event=events[0],
            first_token=events[0],
            last_token=events[-1],
            last_event=events[-1],
            gaps=tuple(b - a for a, b in itertools.pairwise(events)),
            input_tokens=20,
            output_tokens=tokens,
            finish_reason="stop",
            status=200,
        )
        if chance.random() < failed:
            record = replace(record, status=500, failure="http_status", detail=detail)
        free[slot] = record.end
        made.append(record)
    return sorted(made, key=lambda record: record.end)


def summary(*levels: list[RequestRecord], model: str = "m") -> BenchSummary:
    """Return the summary of a run, whose levels have 1, 2, 3... slots."""
    made = []
    for slots, records in enumerate(levels, start=1):
        measures = measure(records)
        seen = Circumstances(Client(None, 0.25), slots=slots)
        examples = tuple(replace(r, gaps=()) for r in records if not r.ok)[:5]
        made.append(Level(Closed(slots), measures, judge(measures, seen), seen, examples))
    load = Load(tuple(level.shape for level in made))
    return BenchSummary(1_700_000_000.0, "http://127.0.0.1:8000/v1", model, load, tuple(made))
