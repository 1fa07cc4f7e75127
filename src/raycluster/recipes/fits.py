"""Which recipes fit on hosts, and how; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raycluster.core.accelerators.choice import chosen
from raycluster.core.accelerators.values import described
from raycluster.core.interfaces import Facts
from raycluster.plan.forecast.fits import gpu_batch, gpu_memory
from raycluster.plan.sizing.memory import BATCH, ask_of, fit, load_of
from raycluster.recipes.catalog import AS_PUBLISHED, USUAL_TOKENS, Recipe
from raycluster.spec import ClusterSpec, Model, ResolvedHost

ENOUGH = 32768
"""Tokens of a request for which more GPUs are not taken."""
OLD_GPU = (8, 0)
"""Compute capability below which GPUs know no bfloat16, in which most models are published."""


@dataclass(frozen=True)
class Placing:
    """How one replica fits on a host, or why not. `gpus` is 0 on a CPU.

    `length` are the tokens of a request at most, `at_once` how many such requests. `hosts` are all
    that take a replica of the same arguments, where others do not.
    """

    host: str
    hardware: str
    gpus: int = 0
    quantization: str = ""
    length: int | None = None
    at_once: float | None = None
    problem: str = ""
    hosts: tuple[str, ...] = ()

    def suits(self, other: Placing) -> bool:
        """Tell whether another place, too, takes a replica that is run as here."""
        same = (other.gpus, other.quantization) == (self.gpus, self.quantization)
        return same and not other.problem and (other.length or 0) >= (self.length or 0)

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe's engine arguments for this place."""
        found = recipe.arguments(self.quantization)
        if self.gpus > 1:
            found["tensor_parallel_size"] = self.gpus
        if self.length and self.length != recipe.shape.context:
            found["max_model_len"] = self.length
        return found


def best(recipe: Recipe, spec: ClusterSpec, facts: Mapping[str, Facts]) -> Placing | None:
    """Return the best place for a replica among the hosts of which facts are known.

    As published before quantized, on GPUs before CPUs, and then where most requests fit.
    """
    found = min(tried := _every(recipe, spec, facts), key=_order, default=None)
    if found is None or found.problem:
        return found
    able = dict.fromkeys(each.host for each in tried if found.suits(each))
    return replace(found, hosts=tuple(able) if len(able) < len(spec.hosts) else ())


def _every(recipe: Recipe, spec: ClusterSpec, facts: Mapping[str, Facts]) -> list[Placing]:
    return [
        placing
        for host in spec.hosts
        if host.name in facts
        for placing in _on_host(recipe, host, facts[host.name], spec.env)
    ]


def _order(p: Placing) -> tuple[object, ...]:
    enough = (p.length or 0) >= ENOUGH
    return (
        bool(p.problem),
        not p.gpus,
        bool(p.quantization),
        not enough,
        p.gpus if enough else -(p.length or 0),
        p.gpus,
        -(p.at_once or 0),
    )


def ranked(
    recipes: Iterable[Recipe], placings: Mapping[str, Placing | None], proven: Iterable[str]
) -> list[Recipe]:
    """Return the recipes in order: what was measured, what fits, the largest of that first."""
    measured = set(proven)

    def key(recipe: Recipe) -> tuple[object, ...]:
        placing = placings.get(recipe.name)
        fits = placing is not None and not placing.problem
        size = recipe.parameters or 0
        return (recipe.model not in measured, not fits, -size if fits else size, recipe.name)

    return sorted(recipes, key=key)


def _on_host(
    recipe: Recipe, host: ResolvedHost, facts: Facts, env: Mapping[str, str]
) -> Iterator[Placing]:
    """Yield what comes of each way to run a replica on a host."""
    devices = chosen(host.gpus, facts.gpus)
    env = {**(host.runtime.env or {}), **env}
    if not devices:
        place = Placing(host.name, "CPUs")
        if recipe.shape.quantized:
            yield replace(place, problem=f"{recipe.published} is for GPUs")
        elif host.num_cpus != 0:
            yield _tried(recipe, place, env, facts.memory_bytes, BATCH)
        return
    place, memory = Placing(host.name, described(devices)), gpu_memory(facts, host.gpus)
    able = min((_capability(d.compute_capability) for d in devices), default=OLD_GPU)
    if able < OLD_GPU and recipe.config.get("torch_dtype") == "bfloat16":
        yield replace(place, gpus=1, problem="its GPUs know no bfloat16")
        return
    for quantization in recipe.quantizations if facts.gpus.vendor != "amd" else (AS_PUBLISHED,):
        for count in (n for n in (1, 2, 4, 8, 16) if n <= len(devices)):
            if (recipe.shape.heads or count) % count == 0:
                way = replace(place, gpus=count, quantization=quantization)
                yield _tried(recipe, way, env, memory, gpu_batch(facts, host.gpus))


def _tried(
    recipe: Recipe, way: Placing, env: Mapping[str, str], memory: int | None, batch: int
) -> Placing:
    """Return the way with the longest requests that fit, or with what keeps it from fitting."""
    if not memory:
        return replace(way, problem="its memory is unknown")
    shape, weights = recipe.loaded(way.quantization)
    args = {"tensor_parallel_size": way.gpus} if way.gpus else {}
    for length in _lengths(recipe):
        model = Model(
            name=recipe.name,
            engine_args={**args, **({"max_model_len": length} if length else {})},
        )
        ask = ask_of(model, gpus=way.gpus, env=env, batch=batch)
        seen = fit(ask, shape, load_of(ask, shape, weights), memory, gpu=bool(way.gpus))
        way = replace(way, length=length, at_once=seen.at_once, problem=seen.problem)
        if not seen.problem:
            break
    return way


def _lengths(recipe: Recipe) -> list[int | None]:
    """Return the lengths of a request that are tried, the model's own first."""
    own = recipe.shape.context
    if own is None:
        return [None]
    return [own, *(n for n in (131072, 65536, ENOUGH, 16384, USUAL_TOKENS, 4096) if n < own)]


def _capability(told: str | None) -> tuple[int, int]:
    """Return a compute capability as numbers; one that is not told is not held against it."""
    major, _, minor = (told or "").partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else OLD_GPU
