"""How the cluster stands, for programs: versioned, null where a figure is not known; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raycluster.core.cgroups import Limits
from raycluster.core.errors import AuthError, ConnectionLostError, HostKeyError, UnreachableError
from raycluster.core.untrusted import Told
from raycluster.observe.diagnosis import Health, Issue, ModelHealth
from raycluster.report.outcome import endpoints
from raycluster.services.processes import roles
from raycluster.spec import ResolvedHost
from raycluster.state.cluster import HostState
from raycluster.status.figures import ModelFigures
from raycluster.status.gpus import GpuStatus
from raycluster.status.warnings import warnings

if TYPE_CHECKING:
    from raycluster.status.ask import Standing

SCHEMA = 1
"""Grows when a key goes or changes its meaning, not when one is added."""
UNREACHED = (UnreachableError, HostKeyError, AuthError, ConnectionLostError)


def status_json(standing: Standing) -> dict[str, Any]:
    """Return all that is known."""
    health = standing.health
    return {
        "schema": SCHEMA,
        "cluster": health.spec.cluster.name,
        "taken": standing.taken,
        "healthy": not health.problems,
        "problems": _problems(health.problems),
        "warnings": _problems(warnings(standing)),
        "nodes": [node(standing, host) for host in health.spec.hosts],
        "models": [model(standing, each) for each in health.models],
        "endpoints": endpoints(health.spec),
        "tunnels": [
            {"pid": t.pid, "since": t.since, "endpoints": dict(t.urls)} for t in standing.tunnels
        ],
        "cost": _cost(standing),
    }


def _problems(problems: Iterable[Issue]) -> list[dict[str, str]]:
    return [{"where": p.where, "what": p.what, "hint": p.hint} for p in problems]


def node(standing: Standing, host: ResolvedHost) -> dict[str, Any]:
    """Return what is known of a host."""
    health = standing.health
    seen = health.state.hosts[host.name]
    found = seen.role(host.role)
    joined = health.state.node(host)
    usage = health.usage.get(joined.node_id, Told(None)) if joined else Told(None)
    used, total = _memory(usage, standing.limits.get(host.name))
    return {
        "name": host.name,
        "role": host.role,
        "runtime": host.kind,
        "address": seen.address or None,
        "process": _process(seen, host.role),
        "started": (found.started or None) if found else None,
        "joined": joined is not None,
        "services": [
            {"role": role, "process": _process(seen, role)}
            for role in roles(health.spec, host)
            if role != host.role
        ],
        "versions": (
            {"python": v.python, "ray": v.ray, "vllm": v.vllm, "transformers": v.transformers}
            if found and (v := found.versions)
            else None
        ),
        "cpus": joined.cpus if joined else None,
        "cpu_percent": usage["cpu"].number(),
        "memory_bytes": None if used is None or total is None else {"used": used, "total": total},
        "gpus": [_gpu(g) for g in standing.gpus.get(host.name, ())],
        "gpus_total": joined.gpus if joined else None,
    }


def _memory(usage: Told, limits: Limits | None) -> tuple[float | None, float | None]:
    """Return what is used and what there is of a host's memory, as far as it leaves it to us."""
    used, total = usage["mem"][3].number(), usage["mem"][0].number()
    if limits is None or total is None or limits.memory_bytes >= total:
        return used, total
    return limits.used_bytes, limits.memory_bytes


def _process(seen: HostState, role: str) -> str:
    """Return what is known of a process, in one word."""
    if isinstance(seen.problem, UNREACHED):
        return "unreachable"
    found = seen.role(role)
    if found:
        return found.health
    return "unknown" if seen.problem else "absent"


def _gpu(gpu: GpuStatus) -> dict[str, Any]:
    told = asdict(gpu)
    errors = told.pop("errors")
    return {**told, "name": gpu.name or None, "uncorrected_memory_errors": errors}


def model(standing: Standing, health: ModelHealth) -> dict[str, Any]:
    """Return what is known of a model."""
    app = health.app
    return {
        "name": health.name,
        "status": _status(standing.health, health),
        "engine": health.engine or None,
        "fallback_reason": health.reason or None,
        "start_seconds": dict(health.seconds) or None,
        "replicas_wanted": app.wanted if app else None,
        "replicas": [
            {"id": r.replica_id, "state": r.state.lower(), "address": r.address}
            for r in (app.replicas if app else ())
        ],
        "figures": _figures(standing.figures.get(health.name, ModelFigures())),
    }


def _figures(seen: ModelFigures) -> dict[str, Any]:
    rates, latency = seen.rates, seen.first_token
    return {
        "replicas_answered": seen.answered,
        "running_requests": seen.running,
        "waiting_requests": seen.waiting,
        "kv_cache_usage": seen.kv_cache_usage,
        "rates": {
            "source": rates.source,
            "window_seconds": round(rates.window_s, 3),
            "requests_per_second": _finite(rates.requests),
            "errors_per_second": _finite(rates.errors),
            "generated_tokens_per_second": _finite(rates.tokens),
        }
        if rates
        else None,
        "time_to_first_token": {
            "window_seconds": _finite(latency.window_s),
            "p50_seconds": _finite(latency.p50),
            "p95_seconds": _finite(latency.p95),
        }
        if latency
        else None,
    }


def _finite(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


def _cost(standing: Standing) -> dict[str, Any] | None:
    if (cost := standing.cost) is None:
        return None
    return {
        "currency": cost.currency,
        "per_hour": cost.per_hour,
        "per_million_generated_tokens": _finite(cost.per_million),
        "hosts_without_price": list(cost.unpriced),
    }


def _status(health: Health, model: ModelHealth) -> str:
    if model.app:
        return model.app.status.lower()
    state = health.state
    unseen = state.hosts[health.spec.head_host.name].problem or state.head_problem
    return "unknown" if unseen else "absent"
