"""How the cluster stands, for people: on one screen, whatever its size; pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from raycluster.report.outcome import endpoints
from raycluster.status import json
from raycluster.status.figures import Latency, ModelFigures
from raycluster.status.warnings import warnings

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

    from raycluster.observe.diagnosis import Issue, ModelHealth
    from raycluster.status.ask import Standing

Row = Mapping[str, str]
Lines = list["list[Segment]"]

_GPU = ("GPU", "GPU MEM", "TEMP", "POWER")
_NODE = ("NODE", "ROLE", "ADDRESS", "RUNTIME", "STATE", "RAY", "VLLM", "CPU", "MEM", *_GPU)
_LEAST_WANTED = (
    *(("RUNTIME",), ("POWER",), ("TEMP",), ("RAY", "VLLM"), ("ADDRESS",)),
    *(("CPU", "MEM"), ("GPU MEM",), ("GPU",)),
)
"""What a narrow terminal does not show, the first to go first."""
_MODEL = ("MODEL", "STATE", "ENGINE", "REPLICAS", "RUNS", "WAITS", "KV", "REQ/S", "TOK/S", "TTFT")
_RIGHT = frozenset({"CPU", "MEM", *_GPU, "RUNS", "WAITS", "KV", "REQ/S", "TOK/S"})
_NONE = "-"
_STYLES = {
    **dict.fromkeys(("ready", "running"), "green"),
    **dict.fromkeys(("unreachable", "stopped", "absent", "deploy failed", "unhealthy"), "red"),
    **dict.fromkeys(("not joined", "unknown", "starting", "restarting", "deploying"), "yellow"),
    _NONE: "dim",
}


def status_view(standing: Standing, *below: Text, screen: bool = False) -> RenderableType:
    """Return warnings first, then nodes, models and endpoints; `below` goes under the headline.

    With `screen` it takes no more lines than the terminal has: healthy nodes go first.
    """
    return _View(standing, below, screen=screen)


class _View:
    def __init__(self, standing: Standing, below: Sequence[Text], *, screen: bool) -> None:
        self._standing = standing
        self._below = below
        self._screen = screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.console import Group

        height = options.size.height if self._screen else None
        options = options.update(height=None)

        def lines(part: RenderableType) -> Lines:
            return console.render_lines(part, options, pad=False)

        standing, whole = self._standing, height is None
        top = lines(Group(_headline(standing), *self._below))
        told = _problems(standing, whole=whole)
        models = lines(_models(standing, whole=whole))
        end = lines(_end(standing, whole=whole))
        nodes = lines(_table_of_nodes(standing))
        if height is not None:
            room = height - len(top) - len(models)
            told = _cut(told, max(2, room // 3), "more to be told of")
            room -= len(told)
            if len(nodes) > room:
                nodes = lines(_table_of_nodes(standing, most=max(1, room - 2)))
            end = end[: max(0, room - len(nodes))]
        parts = [part for part in ([*top, *lines(Group(*told))], nodes, models, end) if part]
        every = [line for part in parts for line in ([], *part)][1:]  # an empty line between them
        if height is not None and len(every) > height:
            every = [line for part in parts for line in part][:height]
        for line in every:
            yield from line
            yield _newline()


def _newline() -> Segment:
    from rich.segment import Segment

    return Segment.line()


def _text(content: str, style: str = "", *, whole: bool = True) -> Text:
    """Return text that wraps, or with `whole` False is cut at the edge of the screen."""
    from rich.text import Text

    if whole:
        return Text(content, style=style)
    return Text(content, style=style, no_wrap=True, overflow="ellipsis")


def _cut(parts: list[Text], most: int, what: str) -> list[Text]:
    if len(parts) <= most:
        return parts
    return [*parts[: most - 1], _text(f"  ... and {len(parts) - most + 1} {what}", "dim")]


def _headline(standing: Standing) -> RenderableType:
    from rich.text import Text

    health = standing.health
    word, style = ("degraded", "bold yellow") if health.problems else ("healthy", "bold green")
    return Text.assemble((health.spec.cluster.name, "bold"), " is ", (word, style))


def _problems(standing: Standing, *, whole: bool) -> list[Text]:
    found = _told(standing.health.problems, "!", "yellow", whole=whole)
    return found + _told(warnings(standing), "~", "cyan", whole=whole)


def _told(problems: Iterable[Issue], mark: str, style: str, *, whole: bool) -> list[Text]:
    parts = []
    for problem in problems:
        parts.append(_text(f"  {mark} {problem.where}: {problem.what}", style, whole=whole))
        if problem.hint:
            parts.append(_text(f"      next: {problem.hint}", "dim", whole=whole))
    return parts


class _Fitting:
    """Shows the first of some tables that fits the width, or the last."""

    def __init__(self, *choices: RenderableType) -> None:
        self._choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement

        wide = options.update(width=1_000_000)
        for choice in self._choices[:-1]:
            if Measurement.get(console, wide, choice).maximum <= options.max_width:
                yield choice
                return
        yield self._choices[-1]


def _table_of_nodes(standing: Standing, most: int | None = None) -> RenderableType:
    """Return all nodes, or `most` lines of them: those with a problem first."""
    from rich.console import Group

    hosts = standing.health.spec.hosts
    rows = {host.name: _node_rows(json.node(standing, host), most) for host in hosts}
    left = 0
    if most is not None:
        ill = {problem.where for problem in standing.health.problems}
        names = sorted(rows, key=lambda name: name not in ill)
        ends = accumulate(len(rows[name]) for name in names)
        shown = {name for name, end in zip(names, ends, strict=True) if end <= most}
        left = len(rows) - len(shown)
        rows = {name: rows[name] for name in names if name in shown}
    every = [row for each in rows.values() for row in each]
    there = [c for c in _NODE if c not in _GPU or any(row.get(c) for row in every)]
    dropped = [(), *accumulate(_LEAST_WANTED)]
    choices = [tuple(c for c in there if c not in less) for less in dropped]
    table = _Fitting(*(_table(columns, every) for columns in choices))
    word = "host" if left == 1 else "hosts"
    return Group(table, _text(f"... and {left} more {word}", "dim")) if left else table


def _table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in columns:
        justify: Any = "right" if title in _RIGHT else "left"
        table.add_column(title, overflow="fold", justify=justify)
    for row in rows:
        cells = (row.get(title, "") for title in columns)
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    return table


def _node_rows(node: Mapping[str, Any], most: int | None) -> list[dict[str, str]]:
    versions = node["versions"] or {}
    state = node["process"]
    if state == "running":
        state = "ready" if node["joined"] else "not joined"
    row = {
        "NODE": node["name"],
        "ROLE": node["role"],
        "ADDRESS": node["address"] or "",
        "RUNTIME": node["runtime"],
        "STATE": state,
        "RAY": versions.get("ray", ""),
        "VLLM": versions.get("vllm", ""),
        "CPU": _percent(node["cpu_percent"]),
        "MEM": _memory(node["memory_bytes"]),
        **_gpus(node, together=most is not None),
    }
    services = [
        {"NODE": node["name"], "ROLE": service["role"], "STATE": service["process"]}
        for service in node["services"]
    ]
    return [row, *services]


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f}%"


def _memory(value: Mapping[str, float] | None) -> str:
    return _NONE if value is None else f"{value['used'] / 2**30:.1f}/{value['total'] / 2**30:.0f}G"


def _gpus(node: Mapping[str, Any], *, together: bool) -> dict[str, str]:
    """Return the cells of a node's GPUs: a line for each, or one for all `together`."""
    gpus: Sequence[Mapping[str, Any]] = node["gpus"]
    if not gpus:
        return {"GPU": f"{node['gpus_total']:.0f}"} if node["gpus_total"] else {}
    if together and len(gpus) > 1:
        gpus = [_together(gpus)]
    cells = [
        {
            "GPU": _percent(gpu["utilization_percent"]),
            "GPU MEM": _gigabytes(gpu["memory_used_mib"], gpu["memory_total_mib"]),
            "TEMP": _number(gpu["temperature_celsius"], "{:.0f}C"),
            "POWER": _number(gpu["power_watts"], "{:.0f}W"),
        }
        for gpu in gpus
    ]
    return {title: "\n".join(cell[title] for cell in cells) for title in _GPU}


def _together(gpus: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of the utilization, the highest temperature, and sums of the rest."""
    mean = {key: _sum(gpus, key) for key in gpus[0] if key.endswith(("_mib", "_watts"))}
    busy = _sum(gpus, "utilization_percent")
    warm = [g["temperature_celsius"] for g in gpus if g["temperature_celsius"] is not None]
    return {
        **mean,
        "utilization_percent": None if busy is None else busy / len(gpus),
        "temperature_celsius": max(warm, default=None),
    }


def _sum(gpus: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [gpu[key] for gpu in gpus]
    return None if None in values else math.fsum(values)


def _gigabytes(used: float | None, total: float | None) -> str:
    if used is None or total is None:
        return _NONE
    return f"{used / 1024:.1f}/{total / 1024:.0f}G"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else form.format(value)


def _models(standing: Standing, *, whole: bool) -> RenderableType:
    from rich.console import Group

    if not standing.health.models:
        return Group()
    rows = [_model_row(standing, model) for model in standing.health.models]
    parts: list[RenderableType] = [_Fitting(_table(_MODEL, rows), Group(*map(_stacked, rows)))]
    notes = dict.fromkeys(_note(figures) for figures in standing.figures.values())
    parts += [_text(f"  {note}", "dim", whole=whole) for note in notes if note]
    return Group(*parts)


def _model_row(standing: Standing, model: ModelHealth) -> dict[str, str]:
    told = json.model(standing, model)
    seen = standing.figures.get(model.name, ModelFigures())
    usage = seen.kv_cache_usage
    return {
        "MODEL": model.name,
        "STATE": told["status"].replace("_", " "),
        "ENGINE": model.engine or _NONE,
        "REPLICAS": _replicas(model),
        "RUNS": _number(seen.running, "{:.0f}"),
        "WAITS": _number(seen.waiting, "{:.0f}"),
        "KV": _percent(None if usage is None else usage * 100),
        "REQ/S": _rate(seen.rates.requests if seen.rates else None),
        "TOK/S": _rate(seen.rates.tokens if seen.rates else None),
        "TTFT": _latency(seen.first_token),
    }


def _replicas(model: ModelHealth) -> str:
    app = model.app
    if app is None:
        return _NONE
    if app.asleep:
        return "asleep"
    counts = Counter(replica.state.lower() for replica in app.replicas)
    ready = counts.pop("running", 0)
    of = f"{ready} ready" if app.wanted in (None, ready) else f"{ready} of {app.wanted} ready"
    return ", ".join([of, *(f"{count} {state}" for state, count in counts.items())])


def _rate(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.0f}" if value >= 99.95 or value == 0 else f"{value:.1f}"


def _latency(latency: Latency | None) -> str:
    if latency is None or latency.p50 is None or latency.p95 is None:
        return _NONE
    return f"p50 {_seconds(latency.p50)}, p95 {_seconds(latency.p95)}"


def _seconds(value: float) -> str:
    if math.isinf(value):
        return "over 160s"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    return f"{value:.1f}s" if value < 99.95 else f"{value:.0f}s"


def _stacked(row: Row) -> Text:
    """Return a model's row in lines of its own, for a terminal where a table has no room."""
    from rich.text import Text

    figures = (
        *(("RUNS", "run"), ("WAITS", "wait"), ("REQ/S", "req/s"), ("TOK/S", "tok/s")),
        ("KV", "of the KV cache"),
    )
    told = [f"{row[title]} {word}" for title, word in figures if row[title] != _NONE]
    first = [row["STATE"], *(row[title] for title in ("ENGINE", "REPLICAS") if row[title] != _NONE)]
    lines = [", ".join(first)]
    if told:
        lines.append(", ".join(told))
    if row["TTFT"] != _NONE:
        lines.append(f"TTFT {row['TTFT']}")
    return Text.assemble((row["MODEL"], "bold"), *(f"\n  {line}" for line in lines))


def _note(seen: ModelFigures) -> str:
    """Return what the rates and the TTFT are of."""
    rates, latency = seen.rates, seen.first_token
    parts = []
    if rates:
        source = ", from Prometheus" if rates.source == "prometheus" else ""
        parts.append(f"req/s and tok/s: the last {_span(rates.window_s)}{source}")
    if latency and latency.p50 is not None:
        window = latency.window_s
        when = "since the replicas started" if window is None else f"the last {_span(window)}"
        parts.append(f"TTFT: streamed answers, {when}")
    return "; ".join(parts)


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 5 else f"{seconds:.0f} s"


def _end(standing: Standing, *, whole: bool) -> RenderableType:
    from rich.console import Group

    health = standing.health
    lines: list[tuple[str, str]] = []
    if health.state.apps is not None:
        lines += endpoints(health.spec).items()
    for tunnel in standing.tunnels:
        shown = "  ".join(f"{name} {url}" for name, url in tunnel.urls.items())
        lines.append(("tunnel", f"{shown}  (process {tunnel.pid})"))
    if cost := standing.cost:
        text = f"{cost.per_hour:.2f} {cost.currency} an hour"
        if cost.unpriced:
            count = len(cost.unpriced)
            named = cost.unpriced[0] if count == 1 else f"{count} hosts"
            text += f", without {named} of unknown price"
        if cost.per_million is not None:
            text += f", {cost.per_million:.2f} {cost.currency} per million generated tokens now"
        lines.append(("cost", text))
    return Group(*(_text(f"  {name:<10} {text}", whole=whole) for name, text in lines))
