"""What a change needs and costs, as tables for people or as JSON for programs; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raycluster.plan.forecast.downloads import Download, by_host, in_gb
from raycluster.plan.forecast.fits import ModelForecast, Problem
from raycluster.plan.forecast.whole import CostChange, Forecast
from raycluster.plan.sizing.memory import Fit, in_gib

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast for a program: bytes, seconds, and null for what is not known."""
    return {
        "problems": [asdict(p) for p in forecast.problems],
        "warnings": [asdict(p) for p in forecast.warnings],
        "notes": [asdict(p) for p in forecast.notes],
        "models": [_model_json(m) for m in forecast.models],
        "downloads": [_download_json(d) for d in forecast.downloads],
        "interruptions": [asdict(i) for i in forecast.interruptions],
        "cost": asdict(forecast.cost) if forecast.cost else None,
    }


def _model_json(model: ModelForecast) -> dict[str, Any]:
    return {
        "name": model.name,
        "replicas": model.replicas,
        "gpus_per_replica": model.gpus,
        "parameters": model.load.parameters,
        "weights_bytes": model.load.weights,
        "kv_bytes_per_token": model.load.per_token,
        "max_model_len": model.load.length,
        "requests_at_once": model.requests,
        "unknown": list(model.doubts),
        "hosts": {host: _fit_json(fit) for host, fit in model.fits.items()},
    }


def _fit_json(fit: Fit) -> dict[str, Any]:
    return {
        "fits": False if fit.problem else (None if fit.at_once is None else True),
        "memory_bytes": fit.memory,
        "budget_bytes": fit.budget,
        "weights_bytes": fit.weights,
        "kv_bytes": fit.room,
        "request_bytes": fit.request,
        "full_length_requests": fit.at_once,
        "problem": fit.problem or None,
        "hint": fit.hint or None,
    }


def _download_json(download: Download) -> dict[str, Any]:
    return {
        "host": download.host,
        "what": download.what,
        "bytes": download.size,
        "stored_bytes": download.stored,
        "exact": download.certain,
        "folder": download.folder or None,
        "free_bytes": download.disk.free if download.disk else None,
    }


def forecast_view(forecast: Forecast) -> RenderableType:
    """Return problems first, then tables of the models and downloads, interruption and cost."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for problem in forecast.problems:
        parts += _told(problem, "✗", "red")
    for problem in forecast.warnings:
        parts += _told(problem, "!", "yellow")
    for note in forecast.notes:
        parts += _told(note, "i", "cyan")
    if forecast.models:
        parts += [_models(forecast), *(Text(line) for line in _unknown(forecast))]
    if forecast.downloads:
        parts.append(_downloads(forecast))
    parts += [
        Text(f"~ {each.where}: {each.what}", style="yellow") for each in forecast.interruptions
    ]
    if forecast.cost:
        parts.append(Text(_cost(forecast.cost)))
    return Group(*parts)


def _told(problem: Problem, mark: str, style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(f"{mark} {problem.where}: {problem.what}", style=style)
    if problem.hint:
        yield Text(f"    next: {problem.hint}", style="dim")


def _models(forecast: Forecast) -> Table:
    table = _table("MODEL", "WEIGHTS", "A REQUEST", "HOSTS", "FULL-LENGTH REQUESTS AT ONCE")
    for model in forecast.models:
        for hosts, fit in _alike(model.fits):
            table.add_row(
                model.name, in_gib(fit.weights), _request(model, fit), hosts, _at_once(model, fit)
            )
    return table


def _alike(fits: Mapping[str, Fit]) -> Iterator[tuple[str, Fit]]:
    """Yield hosts with the same figures together."""
    for fit in dict.fromkeys(fits.values()):
        yield ", ".join(host for host, other in fits.items() if other == fit), fit


def _request(model: ModelForecast, fit: Fit) -> str:
    if fit.request is None or not model.load.length:
        return "?"
    return f"{in_gib(fit.request)} for {model.load.length:,} tokens"


def _at_once(model: ModelForecast, fit: Fit) -> str:
    if fit.problem:
        return "does not fit"
    if fit.at_once is None:
        return "unknown"
    if not int(fit.at_once):
        return f"none ({model.requests} asked for)"
    return f"up to {int(fit.at_once):,} ({model.requests:,} asked for)"


def _unknown(forecast: Forecast) -> Iterator[str]:
    for model in forecast.models:
        if model.doubts and any(f.at_once is None for f in model.fits.values()):
            yield f"  {model.name}: cannot tell whether it fits: {'; '.join(model.doubts)}"


def _downloads(forecast: Forecast) -> Table:
    table = _table("HOST", "TO FETCH", "FREE", "IN")
    for host, found in by_host(forecast.downloads).items():
        for download in found:
            free = in_gb(download.disk.free) if download.disk else "?"
            table.add_row(host, f"{download.what} ({_sizes(download)})", free, download.folder)
    return table


def _sizes(download: Download) -> str:
    known = [in_gb(download.size)] if download.size else []
    known += [f"{in_gb(download.stored)} unpacked"] if download.stored else []
    return ", ".join(known) or "unknown size"


def _cost(cost: CostChange) -> str:
    change = f" ({cost.change:+.2f} by this change)" if cost.change else ""
    without = f"; without a price: {', '.join(cost.unpriced)}" if cost.unpriced else ""
    return f"cost: {cost.per_hour:.2f} {cost.currency} per hour{change}{without}"


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
