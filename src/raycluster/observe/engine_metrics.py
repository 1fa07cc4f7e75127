"""The text of metrics endpoints -> what a replica or a node says at one moment; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raycluster.core.untrusted import not_understood, number_of, printable, too_much

# Our name -> vLLM's, today's first.
VLLM_SERIES: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_cache_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",
    ),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "preemptions": ("vllm:num_preemptions_total",),
    "requests": ("vllm:request_success_total",),
}
_INFO, _REQUESTS = "raycluster_engine_info", "raycluster_requests_total"
_TOKENS = "raycluster_tokens_total"
_STARTED = "process_start_time_seconds"
ENGINE_SERIES = (*(n for names in VLLM_SERIES.values() for n in names), _INFO, _REQUESTS, _TOKENS)
ENGINE_SERIES = (*ENGINE_SERIES, _STARTED)
"""What `read_engine` uses: an endpoint that can be asked for some series is asked for these."""

_FIRST, _OWN = "raycluster_time_to_first_token_seconds_bucket", "raycluster_readiness_tokens_total"
SERVICE_SERIES = (*ENGINE_SERIES, _FIRST, _OWN)
"""What `read_service` uses."""
_LISTS = frozenset({"/v1/models", "other"})
"""Endpoints whose requests no engine works on."""

_BUSY, _USED, _FREE = "ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"
_MIB = 1024 * 1024
_LONGEST, _MOST = 65536, 20_000  # characters of a line; lines of the series that are read
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one replica said of itself; None where its engine has no such figure.

    `started` (seconds since the epoch, 0 if unknown) tells its process from another at the same
    place, `age` is in seconds. From `prompt_tokens` on they are counts since the process began.
    `kv_cache_usage` is between 0 and 1; the prefix cache's figures are in tokens. `engine` is the
    one that serves, and `fell_back` why that is not the one that comes first.
    """

    started: float = 0.0
    age: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_cache_queries: float | None = None
    prefix_cache_hits: float | None = None
    preemptions: float | None = None
    requests: float | None = None
    engine: str = ""
    fell_back: str = ""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment; `utilization` is between 0 and 1, None where it is not told."""

    host: str
    index: str
    name: str
    utilization: float | None
    memory_bytes: float
    total_bytes: float | None


@dataclass(frozen=True, slots=True)
class Service:
    """What one replica did for its clients since its process began, beside its `engine`'s figures.

    `requests` have ended, `errors` of them with a status of 500 or more. `tokens` were generated,
    without those of questions whether it is ready; None where the engine does not count them.
    `first_token` counts streamed answers by the seconds to their first token: upper bounds, rising
    to infinity, with how many took at most so long.
    """

    engine: Reading
    requests: float
    errors: float
    tokens: float | None
    first_token: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    labels: Mapping[str, str]
    value: float


def read_engine(text: str, model: str = "", *, now: float | None = None) -> Reading | None:
    """Return what a replica's metrics say, None where they are not those of an engine of `model`.

    Without `model` any engine will do. `now` is the replica's own clock, in seconds since the
    epoch. Raises AnswerError for text that is no metrics.
    """
    return _reading(_of(_points(text, ENGINE_SERIES), model), now)


def read_service(text: str, model: str, *, now: float | None = None) -> Service | None:
    """Return what a replica of `model` did for its clients; None, `now` and errors as above."""
    points = _of(_points(text, SERVICE_SERIES), model)
    engine = _reading(points, now)
    if engine is None:
        return None
    ended = [p for p in points if p.name == _REQUESTS and p.labels.get("endpoint") not in _LISTS]
    own = math.fsum(p.value for p in points if p.name == _OWN)
    tokens = engine.generation_tokens
    return Service(
        engine,
        math.fsum(p.value for p in ended),
        math.fsum(p.value for p in ended if p.labels.get("status", "") >= "500"),
        None if tokens is None else max(0.0, tokens - own),
        _buckets(points),
    )


def _buckets(points: Iterable[_Point]) -> dict[float, float]:
    counts: dict[float, float] = {}
    for point in points:
        if point.name == _FIRST:
            said = point.labels.get("le", "")
            bound = math.inf if said == "+Inf" else number_of(said)
            if bound is not None:
                counts[bound] = counts.get(bound, 0.0) + point.value
    return dict(sorted(counts.items()))


def _of(points: list[_Point], model: str) -> list[_Point]:
    """Return the points that are about `model`, or about none."""
    if not model:
        return points
    own = ("model_name", "model")
    return [p for p in points if all(p.labels.get(name, model) == model for name in own)]


def _reading(points: list[_Point], now: float | None) -> Reading | None:
    if not any(p.name.startswith(("vllm:", _INFO)) for p in points):
        return None
    values: dict[str, Any] = {ours: _value(points, ours) for ours in VLLM_SERIES}
    if all(value is None for value in values.values()):
        values |= _transformers(points)
    started = next((p.value for p in points if p.name == _STARTED), 0.0)
    age = now - started if now is not None and started else None
    info = next((p.labels for p in points if p.name == _INFO), {})
    return Reading(
        started,
        age,
        **values,
        engine=info.get("engine", ""),
        fell_back=info.get("reason", ""),
    )


def read_gpus(text: str, host: str) -> tuple[GpuSample, ...]:
    """Return the GPUs in what a node of Ray exports. Raises AnswerError for another text."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for point in _points(text, (_BUSY, _USED, _FREE)):
        gpu = point.labels.get("GpuIndex", ""), point.labels.get("GpuDeviceName", "")
        found.setdefault(gpu, {})[point.name] = point.value
    return tuple(
        GpuSample(
            host,
            index,
            name,
            told[_BUSY] / 100 if _BUSY in told else None,
            told[_USED] * _MIB,  # Ray 2.60 calls them bytes
            (told[_USED] + told[_FREE]) * _MIB if _FREE in told else None,
        )
        for (index, name), told in sorted(found.items())
        if _USED in told
    )


def _points(text: str, names: tuple[str, ...]) -> list[_Point]:
    from prometheus_client.parser import text_string_to_metric_families

    # A node of Ray tells half a megabyte: to look at a line's beginning costs 1/50 of parsing it.
    lines = [line for line in text.split("\n") if line.startswith(names) and len(line) < _LONGEST]
    if len(lines) > _MOST:
        raise too_much("an endpoint of metrics", "", len(text))
    points = []
    try:
        for family in text_string_to_metric_families("".join(f"{line}\n" for line in lines)):
            for sample in family.samples:
                if sample.name in names and abs(sample.value) < 1e18:  # NaN neither
                    labels = {str(n): printable(str(v)) for n, v in sample.labels.items()}
                    points.append(_Point(sample.name, labels, float(sample.value)))
    except _BROKEN as error:  # whatever the parser makes of a bad line
        raise not_understood("an endpoint of metrics", "") from error
    return points


def _value(points: Iterable[_Point], ours: str) -> float | None:
    """Return the sum over the replica's engines, for a share the mean; None where nobody told."""
    for theirs in VLLM_SERIES[ours]:
        if found := [p.value for p in points if p.name == theirs]:
            total = math.fsum(found)
            return total / len(found) if ours == "kv_cache_usage" else total
    return None


def _transformers(points: Iterable[_Point]) -> dict[str, float | None]:
    """Return what our own figures say of an engine that has none."""

    def total(name: str, **labels: str) -> float:
        own = (p for p in points if p.name == name and labels.items() <= p.labels.items())
        return math.fsum(p.value for p in own)

    return {
        "prompt_tokens": total(_TOKENS, kind="prompt"),
        "generation_tokens": total(_TOKENS, kind="generation"),
        "requests": total(_REQUESTS, endpoint="/v1/chat/completions")
        + total(_REQUESTS, endpoint="/v1/completions"),
    }
