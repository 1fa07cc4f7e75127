"""Whether the GPUs of hosts hold the models, and which replicas need several hosts; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from raycluster.spec.model_section import Model

N = TypeVar("N", bound=float)


def usable(model: Model, gpus: Mapping[str, N]) -> dict[str, N]:
    """Return the GPUs, by host, of the hosts that may run the model's replicas."""
    return {host: count for host, count in gpus.items() if model.may_run_on(host)}


def spreads(model: Model, gpus: Mapping[str, float]) -> bool:
    """Tell whether one replica needs the GPUs of several hosts."""
    gpus = usable(model, gpus)
    return model.world_size > 1 and model.each_gpus > max(gpus.values(), default=0) > 0


def parts(model: Model, gpus: Mapping[str, float]) -> int:
    """Return into how many equal parts a replica is split, each with its GPUs on one host; 0: none.

    A part is a stage, or as many GPUs of one as each host has.
    """
    if not spreads(model, gpus):
        return 0
    gpus = usable(model, gpus)
    return model.rank_gpus // min(model.stage, int(max(gpus.values())))


def lacking_gpus(models: Sequence[Model], gpus: Mapping[str, float]) -> str:
    """Return why the GPUs, by host, cannot hold the smallest numbers of replicas, or "".

    Where no host that may run a model has a GPU, the model runs on CPUs.
    """
    on_gpus = [m for m in models if any(usable(m, gpus).values())]
    needed, given = sum(m.each_gpus * m.least_replicas for m in on_gpus), sum(gpus.values())
    if needed > given:
        return f"the models need at least {needed:g} GPUs, but the hosts have {given:g}"
    lacks = (_lacking(m, usable(m, gpus)) or _crowded(m, on_gpus, gpus) for m in on_gpus)
    return next(filter(None, lacks), "")


def _crowded(model: Model, models: Sequence[Model], gpus: Mapping[str, float]) -> str:
    """Return why the models that may run on this one's hosts alone cannot all do so, or ""."""
    if model.hosts is None:
        return ""
    there = [m for m in models if m.hosts and set(m.hosts) <= set(model.hosts)]
    needed = sum(m.each_gpus * m.least_replicas for m in there)
    given = sum(usable(model, gpus).values())
    if needed <= given:
        return ""
    names = ", ".join(m.name for m in there)
    need = "need" if len(there) > 1 else "needs"
    hosts = ", ".join(model.hosts)
    have = "have" if len(model.hosts) > 1 else "has"
    return f"{names} {need} at least {needed:g} GPUs on {hosts}, which {have} {given:g}"


def advice(model: Model, gpus: Mapping[str, float]) -> tuple[str, str] | None:
    """Return what to know of a replica whose stages spread over hosts, and what else there is."""
    gpus = usable(model, gpus)
    most = int(max(gpus.values(), default=0))
    if not spreads(model, gpus) or model.stage <= most or _lacking(model, gpus):
        return None
    hosts = f"{model.stage // most} hosts with {most} GPU{'' if most == 1 else 's'} each"
    return (
        f"{_parallel(model)} over {hosts}: every layer waits for the network between them",
        "keep it on fast links (InfiniBand, RoCE, two DGX Sparks); on slower networks "
        f"{_sizes(model, most)} is usually faster",
    )


def _lacking(model: Model, gpus: Mapping[str, float]) -> str:
    if not model.each_gpus:
        return ""
    given = sum(gpus.values())
    if model.each_gpus > given:  # of which there may be no replica at first
        return (
            f"a replica of {model.name} needs {model.each_gpus:g} GPUs, but {_hosts(model)} have "
            f"{given:g}"
        )
    if not spreads(model, gpus):
        return _lacking_blocks(model, gpus, model.each_gpus, model.least_replicas)
    if model.data > 1:
        return _lacking_host(model, gpus)
    if model.stage <= max(gpus.values()):
        stages = model.pipeline * max(1, model.least_replicas)
        return _lacking_blocks(model, gpus, model.stage, stages)
    return "" if _even(model, gpus) else _uneven(model, gpus)


def _lacking_blocks(model: Model, gpus: Mapping[str, float], block: float, least: int) -> str:
    """Return what is wrong where so many blocks of GPUs, each on one host, are not there."""
    blocks, room = max(1, least), _room(gpus, block)
    if blocks <= room or block <= 1:
        return ""
    return (
        f"{model.name} needs {blocks:g} times {block:g} GPUs on one host; "
        f"{_hosts(model)} have capacity for {room:g}"
    )


def _hosts(model: Model) -> str:
    return "its hosts" if model.hosts else "the hosts"


def _lacking_host(model: Model, gpus: Mapping[str, float]) -> str:
    """Return why a replica of several data-parallel ranks has no place: all are on one host."""
    host, most = max(gpus.items(), key=lambda item: item[1])
    fitting = (n for n in _divisors(model.data) if n * model.rank_gpus <= most)
    size = next(fitting, 1)
    return (
        f"data parallel {model.data} of {model.name} needs {model.each_gpus:g} GPUs on one host; "
        f"{host} has {most:g}: use data_parallel_size = {size} and {model.data // size} times "
        "the `replicas`"
    )


def _even(model: Model, gpus: Mapping[str, float]) -> bool:
    """Tell whether the ranks of each stage have equal parts on as many hosts as they need.

    Ray fills one host before the next, so the hosts with GPUs have to have equally many of them.
    """
    used = {count for count in gpus.values() if count}
    return len(used) == 1 and model.stage % used.pop() == 0


def _uneven(model: Model, gpus: Mapping[str, float]) -> str:
    have = ", ".join(f"{host} has {count:g}" for host, count in gpus.items() if count)
    ways = " or ".join(_ways(model, gpus)) or "use sizes that fit on one host"
    return (
        f"{_parallel(model)} needs a host with {model.stage} GPUs, or hosts with equal shares of "
        f"them; {have}: {ways}"
    )


def _parallel(model: Model) -> str:
    context = f" x prefill context {model.prefill}" if model.prefill > 1 else ""
    return f"tensor parallel {model.tensor}{context}"


def _ways(model: Model, gpus: Mapping[str, float]) -> Iterator[str]:
    """Yield what would do: smaller stages, and fewer GPUs of each host."""
    replicas = max(1, model.least_replicas)
    for tensor in _divisors(model.tensor)[1:]:
        stages = model.tensor // tensor * model.pipeline
        if _room(gpus, tensor * model.prefill) >= stages * replicas:
            yield f"use {_sizes(model, tensor * model.prefill)}"
            break
    for part in _divisors(model.stage)[1:]:
        hosts = model.stage // part * model.pipeline * replicas
        if sum(count >= part for count in gpus.values()) >= hosts:
            yield f"set gpus = {part} for {hosts} hosts and gpus = 0 for others"
            break


def _sizes(model: Model, room: int) -> str:
    """Return the sizes of the largest stages that take `room` GPUs of one host at most."""
    fitting = (n for n in _divisors(model.tensor) if n * model.prefill <= room)
    tensor = next(fitting, 1)
    stages = model.tensor // tensor * model.pipeline
    return f"tensor_parallel_size = {tensor}, pipeline_parallel_size = {stages}"


def _room(gpus: Mapping[str, float], block: float) -> float:
    """Return how many blocks of so many GPUs, each on one host, there are."""
    return sum(count // block for count in gpus.values())


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(number, 0, -1) if number % n == 0)
