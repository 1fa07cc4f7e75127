"""Recipes agree with the configs that they are of, with vLLM's sizes and with the spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycluster.core.errors import UsageError
from raycluster.plan.sizing.memory import ask_of, load_of, request_bytes
from raycluster.recipes.catalog import FP8, Recipe, catalog
from raycluster.spec import ClusterSpec, Model

RECIPES = catalog().recipes
SIZES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "plan" / "sizing" / "vllm.json").read_text()
)
CONFIGS = json.loads(
    (Path(__file__).parents[3] / "src/raycluster/recipes/configs.json").read_text()
)
BY_NAME = {
    name: next(k for k, c in CONFIGS.items() if c == r.config) for name, r in RECIPES.items()
}
each = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def test_there_are_recipes_each_of_a_model_of_its_own() -> None:
    assert len(RECIPES) >= 25
    assert len({r.model for r in RECIPES.values()}) == len(RECIPES)


@each
def test_weights_are_what_vllm_loads(recipe: Recipe) -> None:
    said = SIZES[BY_NAME[recipe.name]]
    if recipe.sources["weights"].startswith("vLLM"):
        assert recipe.weights == said["weights"]
    else:  # of the files, for vLLM's class is of the language part alone, or needs a GPU
        assert said["weights"] is None
    ours = load_of(ask_of(Model(name="m"), gpus=1, env={}), recipe.shape, None).weights
    if ours is not None:
        least = 0.65 if recipe.shape.quantized or "gemma2" in str(recipe.config) else 0.9
        assert least * recipe.weights < ours <= recipe.weights


@each
def test_cache_and_context_are_what_vllm_asks_for(recipe: Recipe) -> None:
    said = SIZES[BY_NAME[recipe.name]]
    assert recipe.shape.context == said["context"]
    ours = request_bytes(
        ask_of(Model(name="m"), gpus=1, env={}, batch=8192), recipe.shape, said["context"]
    )
    assert ours is not None
    assert ours <= said["request"]
    if not recipe.shape.stateful:
        assert ours == said["request"]
    assert (recipe.least_memory() or 0) > recipe.weights


@each
def test_a_recipe_is_a_model_of_a_spec_and_says_its_sources(recipe: Recipe) -> None:
    model = {"name": recipe.model, "engine_args": recipe.arguments()}
    spec = {"cluster": {"name": "q"}, "head": {"transport": "local"}, "models": [model]}
    assert ClusterSpec.model_validate(spec).models[0].location == recipe.model
    facts = {name for name in recipe.engine_args if name != "enable_auto_tool_choice"}
    assert recipe.sources.keys() == facts | {"config", "weights"}
    assert all(text.startswith(("https://", "vLLM 0.")) for text in recipe.sources.values())
    assert "{" not in str(list(recipe.sources.values()))


def test_eight_bits_are_what_vllm_loads_of_published_ones() -> None:
    _, weights = RECIPES["llama-3.1-8b"].loaded(FP8)
    published = SIZES["Llama-3.1-8B-FP8-KV"]["weights"]
    assert 0.999 * published < weights <= published


@pytest.mark.parametrize("wanted", ["qwen3-8b", "Qwen/Qwen3-8B", "QWEN/qwen3-8b", "Qwen3-8B"])
def test_a_recipe_is_found_by_its_name_or_its_models(wanted: str) -> None:
    assert catalog().find(wanted).name == "qwen3-8b"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("qwen3-8", "did you mean `qwen3-8b`?"), ("Qwen/Qwen3-9B", "no recipe"), ("", "no recipe")],
)
def test_an_unknown_name_is_told_with_what_is_near(wanted: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalog().find(wanted)
    assert said in str(caught.value)
