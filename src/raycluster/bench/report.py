"""Figures for people: tables of one run."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from raycluster.bench.server import ServerFigures
from raycluster.bench.stats import Measures, SampleStats
from raycluster.bench.summary import BenchSummary, Level

_COLOURS = {"VALID": "green", "SUSPECT": "yellow", "INVALID": "red"}


def render(summary: BenchSummary, *, plain: bool) -> RenderableType:
    """Return the report: each level, and the levels side by side when there are several."""
    census = summary.census
    found = f"prompts: {census.lines - len(census.refused)} of {census.lines} lines"
    parts: list[RenderableType] = [Text(found)]
    for level in summary.levels:
        parts += _level(level, plain=plain)
    if len(summary.levels) > 1:
        parts.append(_comparison(summary, plain=plain))
    if summary.found is not None:
        parts.append(Text(str(summary.found)))
    parts += [Text(line) for line in _limits(summary)]
    if summary.comparison is not None:
        parts.append(Text("\nagainst the baseline"))
        parts += [Text(f"  {change}") for change in summary.comparison.changes]
        parts += [Text(f"  - {doubt}") for doubt in summary.comparison.doubts]
    return Group(*parts)


def _level(level: Level, *, plain: bool) -> Iterator[RenderableType]:
    yield Text(f"\n{level.shape.label}", style="" if plain else "bold")
    yield Padding(_totals(level), (0, 0, 0, 2), expand=False)
    times = _table(["ms", "mean", "p50", "p90", "p95", "p99", "max"], plain=plain)
    for name, spread in _times(level.measures):
        if spread is not None:
            figures = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)
            times.add_row(name, *(_ms(figure) for figure in figures))
    if times.row_count:
        yield times
    grade = level.verdict.grade
    yield Text(f"  {grade}", style="" if plain else _COLOURS[grade])
    for reason in level.verdict.reasons:
        yield Text(f"    - {reason}")
    for record in level.examples:
        yield Text(f"    line {record.line}: {record.failure}: {record.detail}")


def _totals(level: Level) -> Table:
    measures, client = level.measures, level.seen.client
    table = Table(box=None, show_header=False, pad_edge=False)
    counts = f"{measures.completed} completed, {measures.failed} failed"
    table.add_row("requests", counts)
    table.add_row("duration", f"{measures.duration:.2f} s")
    table.add_row("requests/s", f"{measures.request_throughput:.2f}")
    if measures.request_goodput is not None:
        table.add_row("goodput, requests/s", f"{measures.request_goodput:.2f}")
    table.add_row("output tokens/s", _number(measures.output_throughput))
    table.add_row("total tokens/s", _number(measures.total_token_throughput))
    tokens = f"{_whole(measures.total_input_tokens)} in, {_whole(measures.total_output_tokens)} out"
    table.add_row("tokens", tokens)
    flight = f"{measures.mean_in_flight:.1f} on average, {measures.max_in_flight} at most"
    table.add_row("in flight", flight)
    if client.capacity is not None:
        able = f"{client.capacity:,.0f} requests/s of this size"
        table.add_row("client", f"{client.cpu_share:.0%} of a core; it can send {able}")
    if measures.tokens_per_event is not None and measures.itl_ms is None:
        table.add_row("tokens per event", f"{measures.tokens_per_event:.2f}")
    if level.seen.server is not None:
        for name, told in _server(level.seen.server):
            table.add_row(name, told)
    return table


def _server(server: ServerFigures) -> Iterator[tuple[str, str]]:
    for name, spread in (("servers run", server.running), ("servers queue", server.waiting)):
        if spread is not None:
            yield name, f"{spread.mean:.1f} on average, {spread.max:.0f} at most"
    if (usage := server.kv_cache_usage) is not None:
        yield "KV cache", f"{usage.mean:.0%} full on average, {usage.max:.0%} at most"
    if (rate := server.prefix_cache_hit_rate) is not None:
        yield "prefix cache", f"{rate:.0%} of {_whole(server.prefix_cache_queries)} tokens"
    if (busy := server.gpu_utilization) is not None:
        memory = server.gpu_memory_bytes
        most = f"; memory {memory.max / 2**30:.1f} GiB at most" if memory else ""
        yield "GPUs", f"{busy.mean:.0%} busy on average, {busy.max:.0%} at most{most}"
    fewest, most_replicas = server.fewest_replicas, server.most_replicas
    count = str(fewest) if fewest == most_replicas else f"{fewest} to {most_replicas}"
    took = [str(r.requests) for r in server.replicas if r.requests is not None]
    yield "replicas", f"{count} ({', '.join(took)} requests)" if len(took) > 1 else count


def _times(measures: Measures) -> Iterator[tuple[str, SampleStats | None]]:
    yield "TTFT", measures.ttft_ms
    yield "TPOT", measures.tpot_ms
    if measures.itl_ms is None:
        yield "event gap", measures.event_gap_ms
    else:
        yield "ITL", measures.itl_ms
    yield "E2EL", measures.e2el_ms
    yield "TTFT from intended", measures.ttft_from_intended_ms
    yield "E2EL from intended", measures.e2el_from_intended_ms
    yield "client delay", measures.client_delay_ms


def _comparison(summary: BenchSummary, *, plain: bool) -> Table:
    heads = ["load", "requests/s", "output tokens/s", "TTFT p50", "TTFT p95", "TPOT p50"]
    table = _table([*heads, "E2EL p95", "failed", "verdict"], plain=plain)
    for level in summary.levels:
        m = level.measures
        table.add_row(
            level.shape.label,
            f"{m.request_throughput:.2f}",
            _number(m.output_throughput),
            _ms(m.ttft_ms.p50 if m.ttft_ms else None),
            _ms(m.ttft_ms.p95 if m.ttft_ms else None),
            _ms(m.tpot_ms.p50 if m.tpot_ms else None),
            _ms(m.e2el_ms.p95 if m.e2el_ms else None),
            str(m.failed),
            level.verdict.grade,
        )
    return table


def _limits(summary: BenchSummary) -> Iterator[str]:
    for limit in summary.limits:
        for level in summary.levels:
            where = f" ({level.shape.label})" if len(summary.levels) > 1 else ""
            kept = limit.kept(level.measures)
            yield (
                f"kept{where}: {limit.text}"
                if kept
                else (f"missed{where}: {limit.miss(level.measures)}")
            )


def _table(heads: list[str], *, plain: bool) -> Table:
    table = Table(box=None if plain else box.SIMPLE_HEAD)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "not counted" if value is None else f"{value:,.1f}"


def _whole(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
