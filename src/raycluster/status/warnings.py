"""What is not wrong yet, and should be known; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raycluster.observe.diagnosis import Issue, ModelHealth
from raycluster.state.images import others, started_from
from raycluster.status.figures import ModelFigures

if TYPE_CHECKING:
    from raycluster.status.ask import Standing

FULL = 0.9  # of the KV cache


def warnings(standing: Standing) -> tuple[Issue, ...]:
    """Return what does not make the cluster degraded, each with its next step."""
    return (*_models(standing), *_gpus(standing), *_images(standing))


def _images(standing: Standing) -> Iterator[Issue]:
    health = standing.health
    for other in others(started_from(health.spec, health.state)):
        yield Issue(other.where, other.what, other.hint)


def _models(standing: Standing) -> Iterator[Issue]:
    for model in standing.health.models:
        yield from _model(model, standing.figures.get(model.name, ModelFigures()))


def _model(model: ModelHealth, seen: ModelFigures) -> Iterator[Issue]:
    app = model.app
    if app is None or not app.running:
        return  # that is a problem already
    if app.wanted is not None and app.serving < app.wanted:
        starting = app.alive - app.serving
        what = f"{app.serving} of {app.wanted} replicas are ready, {starting} are starting"
        yield Issue(model.name, what, "raycluster logs app")
    if seen.answered < app.serving:
        what = f"its metrics cover only {seen.answered} of {app.serving} replicas"
        yield Issue(model.name, what, "raycluster logs app")
    if seen.rates and seen.rates.errors:
        what = f"{seen.rates.errors:.2g} requests/s fail with a server error"
        yield Issue(model.name, what, "raycluster logs app")
    if seen.waiting and (seen.kv_cache_usage or 0) >= FULL:
        full = f"{seen.kv_cache_usage:.0%}"
        what = f"{seen.waiting:.0f} requests are queued, and the KV cache is {full} full"
        yield Issue(model.name, what, "use more `replicas`, or a smaller `max_model_len`")


def _gpus(standing: Standing) -> Iterator[Issue]:
    for host, trouble in standing.gpu_problems.items():
        yield Issue(host, trouble.what, trouble.hint)
    for host, gpus in standing.gpus.items():
        for gpu in gpus:
            if gpu.errors:
                what = f"GPU {gpu.index} had {gpu.errors} uncorrectable memory errors"
                hint = f"raycluster exec {host} -- nvidia-smi -q -d ECC; a GPU reset clears them"
                yield Issue(host, what, hint)
