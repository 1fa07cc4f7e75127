"""The recipes that come with the program: facts of open models, each with its source."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

from raycluster.core.errors import UsageError
from raycluster.plan.sizing.memory import ask_of, load_of, request_bytes
from raycluster.plan.sizing.shape import ModelShape, read_shape
from raycluster.serve.settings import GPU_MEMORY
from raycluster.spec import Model
from raycluster.spec.explain import suggest

USUAL_TOKENS = 8192
"""A request of so many tokens, or of the model's most, is what the least memory is told for."""
AS_PUBLISHED, FP8 = "", "fp8"


@dataclass(frozen=True)
class Recipe:
    """A model's facts; `weights` are bytes as vLLM loads them, `config` its own."""

    name: str
    model: str
    weights: int
    config: Mapping[str, Any]
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False
    note: str = ""

    @cached_property
    def shape(self) -> ModelShape:
        """What the config says."""
        return read_shape(dict(self.config))

    @property
    def parameters(self) -> int | None:
        """The number of weights, None where a quantized config does not tell."""
        return self.shape.parameters if self.shape.quantized else self.weights // 2

    @property
    def published(self) -> str:
        """In which form the weights are published: a quantization, or 16 bits."""
        told = self.config.get("quantization_config") or {}
        return str(told.get("quant_method") or "16 bit")

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Values of the engine argument `quantization`; vLLM makes 8 bits of 16 when it loads."""
        dense = self.shape.parameters and not self.shape.quantized
        return (AS_PUBLISHED, FP8) if dense else (AS_PUBLISHED,)

    def arguments(self, quantization: str = AS_PUBLISHED) -> dict[str, Any]:
        """Return the engine arguments."""
        return {**self.engine_args, **({"quantization": quantization} if quantization else {})}

    def loaded(self, quantization: str = AS_PUBLISHED) -> tuple[ModelShape, int]:
        """Return the shape and the bytes of the weights as they are loaded, or less.

        Embeddings stay as they are.
        """
        if not quantization:
            return self.shape, self.weights
        told = {**self.config, **(self.config.get("text_config") or {})}
        tables = 1 if told.get("tie_word_embeddings", True) else 2
        kept = tables * int(told["vocab_size"]) * int(told["hidden_size"]) * 2
        return replace(self.shape, quantized=True), kept + (self.weights - kept) // 2

    def least_memory(self, quantization: str = AS_PUBLISHED) -> int | None:
        """Return the bytes of one GPU at least, for the weights and one request of USUAL_TOKENS."""
        ask = ask_of(Model(name=self.name), gpus=1, env={})
        shape, weights = self.loaded(quantization)
        load = load_of(ask, shape, weights)
        length = min(USUAL_TOKENS, load.length or USUAL_TOKENS)
        request = request_bytes(ask, shape, length)
        return None if request is None else int((weights + request) / GPU_MEMORY)


@dataclass(frozen=True)
class Catalog:
    """All recipes by name; `checked` is the day of their facts, `vllm` whose parser took them."""

    recipes: Mapping[str, Recipe]
    checked: str
    vllm: str

    def find(self, wanted: str) -> Recipe:
        """Return the recipe of this name, or of this model. Raises UsageError."""
        names = {r.model.lower(): r for r in self.recipes.values()} | dict(self.recipes)
        if found := names.get(wanted.lower()):
            return found
        raise UsageError(
            f"there is no recipe {wanted[:100]!r}{suggest(wanted.lower(), self.recipes)}",
            where="recipe",
            hint="raycluster recipe list",
        )


@cache
def catalog() -> Catalog:
    """Return the catalog of this version."""
    here = resources.files(__package__)
    told = tomllib.loads((here / "catalog.toml").read_text("utf-8"))
    configs = json.loads((here / "configs.json").read_text("utf-8"))
    recipes = {}
    for name, values in told["recipes"].items():
        sources = {
            fact: told["sources"][source].format(model=values["model"])
            for fact, source in values["sources"].items()
        }
        parts = {**values, "config": configs[values["config"]], "sources": sources}
        recipes[name] = Recipe(name, **parts)
    return Catalog(recipes, told["checked"], told["vllm"])
