"""Plots as plotly's figures, plain values that a page draws; colours of text are the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycluster.bench.series import Points, Sketch, Timeline

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#808080"),
)
"""Okabe and Ito's colours, which those who see few colours tell apart, on white and on black."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")
HEIGHT, PANEL, LEGEND = 290, 155, 36
"""In pixels: a plot, a panel of several, and its legend above it."""
LEAST_MS = 0.01
"""Shorter times are drawn here: a logarithmic axis has no zero."""

Server = Mapping[str, tuple[list[float], list[Any]]]
"""Times and values of each of the server's figures; see `series.server`."""


@dataclass(frozen=True)
class Plot:
    """A figure with its title; `height` is in pixels, `wide` plots take the page's whole width."""

    title: str
    figure: dict[str, Any]
    height: int
    wide: bool = False


@dataclass
class _Panel:
    title: str
    traces: list[dict[str, Any]] = field(default_factory=list)
    axis: dict[str, Any] = field(default_factory=dict)


def latency(sketch: Sketch, gaps: str) -> Plot | None:
    """Return one level's distributions; `gaps` is what the gaps between events are called."""
    names = {"TTFT": "TTFT", "TPOT": "TPOT", "gaps": gaps, "E2EL": "E2EL"}
    curves = [(names[name], points) for name, points in sketch.curves.items()]
    return _curves("Share within a latency", curves, wide=True) if curves else None


def latencies(sketches: Sequence[tuple[str, Sketch]]) -> list[Plot]:
    """Return, for each latency, the distributions of all levels."""
    plots = []
    for name in ("TTFT", "TPOT", "E2EL"):
        curves = [(label, s.curves[name]) for label, s in sketches if name in s.curves]
        if curves:
            plots.append(_curves(f"{name} of each level", curves))
    return plots


def throughput(levels: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Plot]:
    """Return latency against throughput, a point for each level's figures, in their order."""
    counted = all(figures.get("output_throughput") is not None for _, figures in levels)
    name, unit = ("output_throughput", "output tokens/s")
    if not counted:
        name, unit = ("request_throughput", "requests/s")
    plots = []
    for latency_name, title in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("e2el_ms", "E2EL")):
        known = [(label, f[name], f[latency_name]) for label, f in levels if f.get(latency_name)]
        if len(known) < 2:
            continue
        traces = [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{title} {stat}",
                "x": [x for _, x, _ in known],
                "y": [spread[stat] for _, _, spread in known],
                "text": [label for label, _, _ in known],
                "hovertemplate": "%{text}<br>%{x:,.4~g} " + unit + ": %{y:,.4~g} ms",
                "line": {"color": colour},
            }
            for stat, colour in (("p50", BLUE), ("p95", ORANGE), ("p99", RED))
        ]
        layout = _layout() | {
            "xaxis": _axis(unit) | {"rangemode": "tozero"},
            "yaxis": _axis(f"{title} in ms") | {"rangemode": "tozero"},
        }
        plots.append(Plot(f"{title} against throughput", _figure(traces, layout), HEIGHT))
    return plots


def over_time(line: Timeline, server: Server, ramp: float = 0.0) -> Plot:
    """Return what happened during a level: requests, latency, and the server's figures if any.

    The first `ramp` seconds, which are not in the level's figures, are shaded.
    """
    rates = _Panel("requests/s")
    rates.traces = [
        _steps("sent", line.edges, line.sent, BLUE),
        _steps("completed", line.edges, line.completed, GREEN),
    ]
    if any(line.failed):
        failed = _steps("failed", line.edges, line.failed, RED)
        rates.traces.append(failed | {"fill": "tozeroy"})
    flight = _Panel("requests")
    flight.traces = [_steps("in flight", line.edges, line.in_flight, BLUE)]
    _add(flight, server, "running", "running", GREEN)
    _add(flight, server, "waiting", "waiting", ORANGE)
    waits = _Panel("TTFT in ms")
    waits.traces = [
        _line("TTFT p50", line.at, line.ttft_p50, BLUE),
        _line("TTFT p95", line.at, line.ttft_p95, ORANGE),
    ]
    shares = _Panel("share", axis={"range": [0, 1.02], "tickformat": ".0%"})
    _add(shares, server, "kv_cache_usage", "KV cache", PURPLE)
    _add(shares, server, "gpu_utilization", "GPU utilization", GREEN)
    memory = _Panel("GPU memory, GiB")
    _add(memory, server, "gpu_memory_bytes", "memory of the fullest GPU", SKY, scale=2**-30)
    replicas = _Panel("replicas", axis={"dtick": 1} if _few(server) else {})
    _add(replicas, server, "replicas", "replicas", GREY, shape="hv")
    panels = [p for p in (rates, flight, waits, shares, memory, replicas) if p.traces]
    title = f"Over time, each point {line.width:g} s"
    height = 50 + PANEL * len(panels)
    figure = _stacked(panels, height)
    figure["layout"]["xaxis"]["range"] = [0, _short(line.edges[-1])]
    if ramp:
        area = {"type": "rect", "xref": "x", "yref": "paper", "x0": 0, "x1": ramp, "y0": 0, "y1": 1}
        shade = {"fillcolor": "rgba(128,128,128,0.2)", "line": {"width": 0}, "layer": "below"}
        figure["layout"]["shapes"] = [area | shade]
    return Plot(title, figure, height, wide=True)


def _curves(title: str, curves: Sequence[tuple[str, Points]], *, wide: bool = False) -> Plot:
    traces = [
        _line(name, [max(x, LEAST_MS) for x in xs], ys, COLOURS[n % len(COLOURS)], shape="hv")
        | {"hovertemplate": "%{y:.1~%} within %{x:,.4~g} ms"}
        for n, (name, (xs, ys)) in enumerate(curves)
    ]
    for n, trace in enumerate(traces):
        trace["line"]["dash"] = DASHES[n // len(COLOURS) % len(DASHES)]
    layout = _layout() | {
        "hovermode": "closest",
        "xaxis": _axis("ms") | {"type": "log"} | _ticks(curves),
        "yaxis": _axis("") | {"range": [0, 1.02], "tickformat": ".0%"},
    }
    return Plot(title, _figure(traces, layout), HEIGHT, wide)


def _ticks(curves: Sequence[tuple[str, Points]]) -> dict[str, Any]:
    """Return the marks of a logarithmic axis: the fewer powers of ten, the more have a number."""
    low = math.log10(max(LEAST_MS, min(xs[0] for _, (xs, _) in curves)))
    high = math.log10(max(LEAST_MS, *(xs[-1] for _, (xs, _) in curves)))
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps: tuple[float, ...] = (
        (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if high - low < 0.8 else (1, 2, 5)
    )
    marks = [(step, step * 10.0**decade) for decade in decades for step in steps]
    texts = [f"{mark:,.7g}" if step == 1 or high - low < 3 else "" for step, mark in marks]
    return {"tickvals": [mark for _, mark in marks], "ticktext": texts}


def _few(server: Server) -> bool:
    return max((value or 0 for value in server.get("replicas", ([], []))[1]), default=0) <= 8


def _add(
    panel: _Panel,
    server: Server,
    key: str,
    name: str,
    colour: str,
    *,
    shape: str = "linear",
    scale: float = 1.0,
) -> None:
    if key in server:
        at, values = server[key]
        scaled = [None if value is None else value * scale for value in values]
        panel.traces.append(_line(name, at, scaled, colour, shape=shape))


def _stacked(panels: Sequence[_Panel], height: int) -> dict[str, Any]:
    """Return one figure of panels above each other, which share the axis of time."""
    traces: list[dict[str, Any]] = []
    layout = _layout() | {"hovermode": "x"}
    drawn = height - layout["margin"]["t"] - layout["margin"]["b"]
    last = "" if len(panels) == 1 else str(len(panels))
    layout["xaxis"] = _axis("seconds since the level began") | {"anchor": f"y{last}"}
    for number, panel in enumerate(panels, start=1):
        suffix = "" if number == 1 else str(number)
        bottom = 1 - number / len(panels)
        top = bottom + 1 / len(panels) - LEGEND / drawn
        layout[f"yaxis{suffix}"] = (
            _axis(panel.title) | {"rangemode": "tozero", "domain": [bottom, top]} | panel.axis
        )
        layout[f"legend{suffix}"] = layout["legend"] | {"y": top}
        traces += [t | {"yaxis": f"y{suffix}", "legend": f"legend{suffix}"} for t in panel.traces]
    return _figure(traces, layout)


def _line(
    name: str, x: Sequence[float], y: Sequence[float | None], colour: str, *, shape: str = "linear"
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "x": [_short(value) for value in x],
        "y": [_short(value) for value in y],
        "line": {"color": colour, "shape": shape, "width": 1.8},
    }


def _steps(
    name: str, edges: Sequence[float], values: Sequence[float], colour: str
) -> dict[str, Any]:
    """Return a line that keeps each value from one edge to the next."""
    return _line(name, edges, [*values, values[-1]], colour, shape="hv")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False, "ticklabelstandoff": 4}


def _layout() -> dict[str, Any]:
    return {
        "margin": {"l": 56, "r": 12, "t": 4, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "x",
    }


def _figure(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": [dict(trace) for trace in traces], "layout": dict(layout)}
