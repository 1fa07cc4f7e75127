"""A run as one page of HTML that needs nothing from elsewhere: tables, and plots by plotly.js."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from raycluster import __version__
from raycluster.bench import figures, series
from raycluster.bench.record import RequestRecord
from raycluster.core import templates

Json = Mapping[str, Any]

STATS = ("mean", "p50", "p90", "p95", "p99", "max")
TIMES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "event_gap_ms": "event gap",
    "e2el_ms": "E2EL",
    "ttft_from_intended_ms": "TTFT from intended",
    "e2el_from_intended_ms": "E2EL from intended",
    "client_delay_ms": "client delay",
}
REFUSED = 5
SAME = 0.0005
"""A change by a smaller share is not called one."""


def page(summary: Json, levels: Iterable[Sequence[RequestRecord]]) -> bytes:
    """Return the page of a run: `summary` is `Summary.to_json()`, `levels` its records.

    The levels are taken one after the other, so that an iterator need not hold all of them.
    What came from files and servers is shown as text, whatever it holds.
    """
    ramp = summary["load"].get("ramp", 0.0)
    sections, sketches = [], []
    for level, records in zip(summary["levels"], levels, strict=False):
        if records:
            drawn = series.sketch(records, ramp)
            sketches.append((html.escape(level["label"]), drawn))
            plots = _of_level(level, drawn, ramp)
        else:
            plots = []
        sections.append(_section(level) | {"plots": [vars(plot) for plot in plots]})
    scripts = [_plotly(), (templates.folder() / "bench" / "draw.js").read_text("utf-8")]
    return templates.render(
        "bench/report.html",
        version=__version__,
        target=summary["target"],
        grade=summary["verdict"],
        facts=list(_facts(summary)),
        limits=_limits(summary["levels"]),
        changes=_changes(summary.get("baseline")),
        doubts=(summary.get("baseline") or {}).get("doubts", []),
        heads=["load", *(name for name, _, _ in _COMPARED), "failed", "verdict"],
        compared=[_compared(level) for level in summary["levels"]],
        plots=[vars(plot) for plot in _between(summary["levels"], sketches)],
        levels=sections,
        stats=STATS,
        scripts=scripts,
        hashes=[_sha256(script) for script in scripts],
    )


def _of_level(level: Json, drawn: series.Sketch, ramp: float) -> list[figures.Plot]:
    samples = (level.get("server") or {}).get("samples") or []
    gaps = "event gap" if level.get("itl_ms") is None else "ITL"
    shown = [figures.over_time(drawn.timeline, series.server(samples), ramp)]
    distributions = figures.latency(drawn, gaps)
    return shown if distributions is None else [*shown, distributions]


def _between(
    levels: Sequence[Json], sketches: Sequence[tuple[str, series.Sketch]]
) -> list[figures.Plot]:
    """Return the plots that hold the levels against each other, of which there are several."""
    if len(levels) < 2:
        return []
    ordered = sorted(levels, key=_offered)
    labelled = [(html.escape(level["label"]), level) for level in ordered]
    return [*figures.throughput(labelled), *figures.latencies(sketches)]


def _offered(level: Json) -> float:
    load = level["load"]
    return float(load.get("rate") or load.get("concurrency") or load.get("speed") or 0.0)


def _facts(summary: Json) -> Iterator[tuple[str, str]]:
    yield "target", summary["target"]["base_url"]
    yield "date", f"{datetime.fromtimestamp(summary['started'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    dataset = summary["dataset"]
    refused = dataset["refused"]
    formats = ", ".join(f"{count:,} {name}" for name, count in dataset["formats"].items())
    lines = f"{dataset['lines'] - len(refused):,} of {dataset['lines']:,} lines"
    yield "prompts", f"{lines} ({formats})" if formats else lines
    if refused:
        reasons = [f"line {item['line']}: {item['reason']}" for item in refused[:REFUSED]]
        more = [f"and {len(refused) - REFUSED:,} more"] if len(refused) > REFUSED else []
        yield "refused", "; ".join(reasons + more)
    if dataset["unsent"]:
        fields = (f"{name} ({count:,})" for name, count in dataset["unsent"].items())
        yield "fields not sent", ", ".join(fields)
    if dataset["digest"]:
        yield "digest of the requests", dataset["digest"]
    if found := summary.get("find_max"):
        yield "highest rate", _highest(found)
    settings = (_setting(name, value) for name, value in summary["load"].items())
    yield "load", ", ".join(setting for setting in settings if setting)


def _highest(found: Json) -> str:
    limits = " and ".join(found["limits"])
    if found["kept"] is None:
        return f"none was found that keeps {limits}"
    above = "" if found["missed"] is None else f" ({found['missed']:g} does not)"
    return f"{found['kept']:g} requests/s keep {limits}{above}"


def _setting(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return name
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _limits(levels: Sequence[Json]) -> dict[str, Any]:
    """Return a table: a row for each level, and a column for each limit."""
    rows = []
    for level in levels:
        cells = []
        for limit in level["limits"]:
            share = limit["value"] is not None and "error_rate" in limit["limit"]
            value = f"{limit['value']:.2%}" if share else _number(limit["value"])
            mark = "kept" if limit["kept"] else "missed"
            cells.append((f"{value} {mark}", mark))
        rows.append((level["label"], cells))
    return {"heads": [limit["limit"] for limit in levels[0]["limits"]], "rows": rows}


def _changes(baseline: Json | None) -> dict[str, Any]:
    """Return a table: a row for each figure, and a column for each level that both runs have."""
    changes = baseline["changes"] if baseline else []
    heads = list(dict.fromkeys(change["where"] for change in changes))
    found = {(change["name"], change["where"]): _changed(change) for change in changes}
    rows = [
        (name, [found.get((name, where), ("–", "")) for where in heads])
        for name in dict.fromkeys(change["name"] for change in changes)
    ]
    return {"heads": heads, "rows": rows}


def _changed(change: Json) -> tuple[str, str]:
    figures, worse = f"{_number(change['before'])} → {_number(change['after'])}", change["worse"]
    if not math.isfinite(worse):
        return f"{figures}, not measured", "missed"
    if abs(worse) < SAME:
        return figures, ""
    return f"{figures}, {abs(worse):.1%} {'worse' if worse > 0 else 'better'}", (
        "missed" if worse > 0 else "kept"
    )


_COMPARED = (
    ("requests/s", "request_throughput", ""),
    ("output tokens/s", "output_throughput", ""),
    ("TTFT p50", "ttft_ms", "p50"),
    ("TTFT p95", "ttft_ms", "p95"),
    ("TPOT p50", "tpot_ms", "p50"),
    ("E2EL p95", "e2el_ms", "p95"),
)


def _compared(level: Json) -> dict[str, Any]:
    cells = []
    for _, name, stat in _COMPARED:
        value = level.get(name)
        cells.append(_number((value or {}).get(stat) if stat else value))
    return {
        "label": level["label"],
        "cells": [*cells, _whole(level["failed"])],
        "grade": level["verdict"]["grade"],
    }


def _section(level: Json) -> dict[str, Any]:
    spreads = ((name, level.get(key)) for key, name in TIMES.items())
    if level.get("itl_ms") is not None:
        spreads = ((name, spread) for name, spread in spreads if name != "event gap")
    return {
        "label": level["label"],
        "grade": level["verdict"]["grade"],
        "reasons": level["verdict"]["reasons"],
        "totals": list(_totals(level)),
        "times": [
            (name, [_number(spread[stat]) for stat in STATS]) for name, spread in spreads if spread
        ],
        "failures": level["failures"],
    }


def _totals(level: Json) -> Iterator[tuple[str, str]]:
    yield "requests", f"{_whole(level['completed'])} completed, {_whole(level['failed'])} failed"
    if level["errors"]:
        yield "failures", ", ".join(f"{count:,} {name}" for name, count in level["errors"].items())
    yield "duration", f"{level['duration']:,.2f} s"
    yield "requests/s", _number(level["request_throughput"])
    if level.get("request_goodput") is not None:
        yield "goodput, requests/s", _number(level["request_goodput"])
    yield "output tokens/s", _number(level["output_throughput"])
    yield "total tokens/s", _number(level["total_token_throughput"])
    tokens = (level["total_input_tokens"], level["total_output_tokens"])
    yield "tokens", "{} in, {} out".format(*(_whole(count) for count in tokens))
    if level.get("total_cached_tokens"):
        yield "tokens from the prefix cache", _whole(level["total_cached_tokens"])
    if level.get("tokens_per_event") is not None and level.get("itl_ms") is None:
        yield "tokens per event", _number(level["tokens_per_event"])
    flight = f"{level['mean_in_flight']:.1f} on average, {level['max_in_flight']:,} at most"
    yield "in flight", flight
    lag = level["client"]["loop_lag_ms"]
    late = "" if lag is None else f", event loop late by {_number(lag['p99'])} ms (p99)"
    able = level["client"].get("capacity")
    most = "" if able is None else f"; it can send {able:,.0f} requests/s of this size"
    yield "client", f"{level['client']['cpu_share']:.0%} of a core{late}{most}"
    yield from _server(level.get("server") or {})


def _server(told: Json) -> Iterator[tuple[str, str]]:
    for name, key in (("servers run", "running"), ("servers queue", "waiting")):
        if spread := told.get(key):
            yield name, f"{spread['mean']:.1f} on average, {spread['max']:.0f} at most"
    for name, key, word in (
        ("KV cache", "kv_cache_usage", "full"),
        ("GPUs", "gpu_utilization", "busy"),
    ):
        if spread := told.get(key):
            yield name, f"{spread['mean']:.0%} {word} on average, {spread['max']:.0%} at most"
    if memory := told.get("gpu_memory_bytes"):
        yield "memory of the fullest GPU", f"{memory['max'] / 2**30:.1f} GiB at most"
    if told.get("prefix_cache_hit_rate") is not None:
        share, tokens = told["prefix_cache_hit_rate"], _whole(told["prefix_cache_queries"])
        yield "prefix cache", f"{share:.0%} of {tokens} tokens"
    if told.get("preemptions"):
        yield "preemptions", _whole(told["preemptions"])
    if "most_replicas" in told:
        few, many = told["fewest_replicas"], told["most_replicas"]
        yield "replicas", f"{few}" if few == many else f"{few} to {many}"


def _number(value: float | None) -> str:
    """Return a figure with the digits that count, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _whole(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
