"""Whether the GPUs of hosts hold the models, and which replicas need several hosts; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raycluster.spec.sections import Model


def spreads(model: Model, gpus: Mapping[str, float]) -> bool:
    """Tell whether one replica needs the GPUs of several hosts."""
    return model.each_gpus > max(gpus.values(), default=0) > 0


def lacking_gpus(models: Sequence[Model], gpus: Mapping[str, float]) -> str:
    """Return why the GPUs, by host, cannot hold the smallest numbers of replicas, or "".

    Without any GPU the models run on CPUs.
    """
    if not any(gpus.values()):
        return ""
    needed, given = sum(m.each_gpus * m.least_replicas for m in models), sum(gpus.values())
    if needed > given:
        return f"the models need {needed:g} GPUs at least, the hosts give {given:g}"
    return next((lack for m in models if (lack := _lacking(m, gpus))), "")


def _lacking(model: Model, gpus: Mapping[str, float]) -> str:
    host, most = max(gpus.items(), key=lambda item: item[1])
    if not model.each_gpus:
        return ""
    if model.tensor > most:
        tensor = max(n for n in range(1, int(most) + 1) if model.tensor % n == 0)
        return (
            f"tensor parallel {model.tensor} needs a host with {model.tensor} GPUs; "
            f"{host} has {most:g}: use tensor_parallel_size = {tensor}, "
            f"pipeline_parallel_size = {model.world_size // tensor}"
        )
    together = model.tensor if spreads(model, gpus) else model.each_gpus
    groups = model.each_gpus / together * max(1, model.least_replicas)
    room = sum(count // together for count in gpus.values())
    if groups > room and together > 1:
        return (
            f"{model.name} needs {groups:g} times {together:g} GPUs on one host; "
            f"the hosts have room for {room:g}"
        )
    return ""
