"""Whether each model fits on the hosts that may hold it; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycluster.core.accelerators.choice import WITHOUT, chosen, lack
from raycluster.core.interfaces import Facts, Gpus
from raycluster.plan.preconditions import gpu_notes, gpus_of
from raycluster.plan.sizing.memory import (
    BATCH,
    Fit,
    ReplicaMemory,
    ask_of,
    batch_on,
    fit,
    in_gib,
    load_of,
)
from raycluster.plan.sizing.shape import ModelShape, read_shape
from raycluster.serve.model_refs import ModelRef
from raycluster.spec import ClusterSpec, Model
from raycluster.spec.gpus import usable
from raycluster.state.inventory import Files, Inventory

KEPT = 2 << 30
"""Bytes of a memory shared with a GPU that the system, Ray and the engine's processes take."""


@dataclass(frozen=True)
class Problem:
    """Something that cannot work, or that may not: where, what, and the next step.

    `certain` is said of a warning of what will fail, once it comes to that.
    """

    where: str
    what: str
    hint: str = ""
    certain: bool = False


@dataclass(frozen=True)
class ModelForecast:
    """What one replica of a model takes, and how it fits on each host that may hold one.

    `requests` are those at once that the spec allows; `kept` are the bytes that are kept for them
    from the start. `doubts` say why something is unknown.
    """

    name: str
    gpus: float
    replicas: int
    requests: int
    load: ReplicaMemory
    fits: Mapping[str, Fit]
    kept: int = 0
    doubts: tuple[str, ...] = ()

    @property
    def problem(self) -> Problem | None:
        """What keeps a replica from every host that may hold one, or None."""
        if not self.fits or not all(f.problem for f in self.fits.values()):
            return None
        host, most = max(self.fits.items(), key=lambda item: item[1].budget or 0)
        place = "fits on no host; on" if len(self.fits) > 1 else "does not fit on"
        return Problem(self.name, f"{place} {host}: {most.problem}", most.hint)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is wrong with some hosts of those that Ray may choose."""
        if self.problem:
            return ()
        return tuple(
            Problem(
                self.name,
                f"does not fit on {host}, where a replica may be placed: {seen.problem}",
                f"{seen.hint}; or set gpus = 0 for that host" if self.gpus else seen.hint,
            )
            for host, seen in self.fits.items()
            if seen.problem
        )


def forecast_models(
    spec: ClusterSpec,
    seen: Inventory,
    wanted: Mapping[str, ModelRef],
    only: Sequence[str] | None = None,
) -> tuple[ModelForecast, ...]:
    """Return the forecast of the spec's models, or of `only` those.

    `wanted` tells what each model's weights are looked for as.
    """
    gpus = _gpus(spec, seen)
    return tuple(
        _forecast(spec, model, wanted.get(model.name), seen, gpus)
        for model in spec.models
        if only is None or model.name in only
    )


def forecast_notes(spec: ClusterSpec, seen: Inventory, only: Sequence[str]) -> tuple[Problem, ...]:
    """Return what to know of how replicas lie on the hosts' GPUs, where all hosts tell theirs."""
    gpus = _gpus(spec, seen)
    if len(gpus) < len(spec.hosts):
        return ()
    notes = gpu_notes(spec, gpus).items()
    return tuple(Problem(name, what, hint) for name, (what, hint) in notes if name in only)


def unseen_gpus(spec: ClusterSpec, seen: Inventory) -> tuple[Problem, ...]:
    """Return what to know of hosts whose models run on CPUs beside hardware that may be a GPU."""
    return tuple(
        Problem(
            host.name,
            f"models run on its CPUs: {doubt.what}",
            f"{doubt.hint}; {WITHOUT}".lstrip("; "),
        )
        for host in spec.hosts
        if (there := seen.hosts.get(host.name))
        and host.gpus != 0
        and not gpus_of(host, there.facts)
        and (doubt := there.facts.gpus.unseen)
    )


def _gpus(spec: ClusterSpec, seen: Inventory) -> dict[str, int]:
    """Return how many GPUs are used of each host that was seen and whose GPUs answer."""
    return {
        host.name: gpus_of(host, there.facts)
        for host in spec.hosts
        if (there := seen.hosts.get(host.name)) and not lack(host.gpus, there.facts.gpus)
    }


def _forecast(
    spec: ClusterSpec,
    model: Model,
    wanted: ModelRef | None,
    seen: Inventory,
    gpus: Mapping[str, int],
) -> ModelForecast:
    silent = seen.hosts.keys() - gpus.keys()
    gpus = usable(model, gpus)
    each = model.each_gpus if any(gpus.values()) or any(map(model.may_run_on, silent)) else 0
    files, why = _files(wanted, seen)
    shape = read_shape(files.config) if files.config else ModelShape()
    fits: dict[str, Fit] = {}
    load = ReplicaMemory(None, None, None, None, ())
    ask = ask_of(model, gpus=each, env=spec.env)
    for host in spec.hosts:
        if not model.may_run_on(host.name):
            continue
        there = seen.hosts.get(host.name)
        if there is None or host.name not in gpus:  # or its GPUs do not answer
            fits[host.name] = Fit()
            continue
        if gpus[host.name] < 1 if each else host.num_cpus == 0:
            continue
        env = {**(host.runtime.env or {}), **spec.env}
        batch = gpu_batch(there.facts, host.gpus) if each else BATCH
        ask = ask_of(model, gpus=each, env=env, batch=batch)
        load_format = str(model.engine_args.get("load_format") or "auto")
        load = load_of(ask, shape, files.weights(load_format))
        memory = gpu_memory(there.facts, host.gpus) if each else there.facts.memory_bytes
        fits[host.name] = fit(ask, shape, load, memory, gpu=bool(each))
    doubts = (why,) if why else load.doubts
    return ModelForecast(
        name=model.name,
        gpus=each,
        replicas=model.least_replicas,
        requests=ask.requests,
        load=load,
        fits=fits,
        kept=ask.kv_bytes or 0,
        doubts=doubts,
    )


def _files(wanted: ModelRef | None, seen: Inventory) -> tuple[Files, str]:
    """Return a model's files from where they are known best, or why nothing is known."""
    if wanted is None:
        return Files(), "its source is resolved by the engine"
    if told := seen.hub.get(wanted):
        return told, ""
    placed = [there.models[wanted] for there in seen.hosts.values() if wanted in there.models]
    known = [p.files for p in placed if p.files.config]
    if known:
        return max(known, key=lambda files: files.weights(wanted.load_format) or 0), ""
    if any(p.hidden for p in placed):
        return Files(), "its folder on the hosts is not readable"
    return Files(), "its config was found neither on the hosts nor on the Hugging Face Hub"


def gpu_memory(facts: Facts, gpus: Gpus) -> int | None:
    """Return the bytes of the smallest of the GPUs that are used, None where none tells.

    Of a memory that a GPU shares with the host, KEPT is not counted.
    """
    sizes = [
        max(d.memory_total_bytes - KEPT, 0)
        if d.shares and d.memory_total_bytes
        else d.memory_total_bytes
        for d in chosen(gpus, facts.gpus)
    ]
    return min((size for size in sizes if size), default=None)


def gpu_batch(facts: Facts, gpus: Gpus) -> int:
    """Return the tokens of a step on the GPU, of those that are used, that takes the fewest."""
    devices = chosen(gpus, facts.gpus)
    return min((batch_on(d.memory_total_bytes, d.name) for d in devices), default=BATCH)


def too_few_cpus(
    spec: ClusterSpec, seen: Inventory, models: Sequence[ModelForecast]
) -> tuple[Problem, ...]:
    """Return the models of which one replica asks for more processors than its hosts have."""
    if len(seen.hosts) < len(spec.hosts):
        return ()
    have = {
        h.name: seen.hosts[h.name].facts.cpus if h.num_cpus is None else h.num_cpus
        for h in spec.hosts
    }
    starting = {model.name for model in models}
    found = []
    for model in (m for m in spec.models if m.name in starting):
        most = max(count for name, count in have.items() if model.may_run_on(name))
        if model.num_cpus <= most or not any(have.values()):
            continue
        hosts = f"none of {', '.join(model.hosts)}" if model.hosts else "no host"
        what = f"each replica asks for {model.num_cpus:g} CPUs, and {hosts} has more than {most}"
        hint = "lower `num_cpus` of the model, or set that of the host"
        found.append(Problem(model.name, what, hint))
    return tuple(found)


def together(spec: ClusterSpec, seen: Inventory, models: Sequence[ModelForecast]) -> Problem | None:
    """Return what is wrong where all models on CPUs take more memory than all hosts have."""
    held = [h for h in spec.hosts if h.name in seen.hosts and h.num_cpus != 0]
    if len(held) < len([h for h in spec.hosts if h.num_cpus != 0]):
        return None
    memory = sum(seen.hosts[h.name].facts.memory_bytes for h in held)
    on_cpu = [m for m in models if not m.gpus and m.load.weights]
    needed = sum(m.replicas * ((m.load.weights or 0) + m.kept) for m in on_cpu)
    if not memory or needed <= memory or any(m.problem for m in models):
        return None
    return Problem(
        "models",
        f"their replicas take {in_gib(needed)} of memory at least, and the hosts have "
        f"{in_gib(memory)}",
        "lower `replicas`, or add hosts",
    )
