from __future__ import annotations

from typing import Any

import pytest

from raycluster.serve.model_refs import ModelRef, differences, model_refs, needed_files
from raycluster.serve.settings import ModelSettings


def asked(source: str, **engine_args: Any) -> tuple[ModelRef, ...]:
    return model_refs(ModelSettings("m", source, engine_args=engine_args).to_json())


@pytest.mark.parametrize("source", ["org/model", "gpt2", "/models/a", "~/a", "./a"])
def test_hub_ids_and_paths_are_brought(source: str) -> None:
    assert asked(source) == (ModelRef(source),)


@pytest.mark.parametrize("source", ["s3://bucket/model", "org/model:Q4_K_M", "a/b/c"])
def test_the_rest_is_left_to_the_engine(source: str) -> None:
    assert asked(source) == ()


def test_arguments_that_matter_are_kept() -> None:
    assert asked("a/b", **{"revision": "v1", "load-format": "pt", "download_dir": "/d"}) == (
        ModelRef("a/b", "v1", "pt", "/d"),
    )


@pytest.mark.parametrize("draft", [{"model": "a/draft"}, '{"model": "a/draft"}'])
def test_a_draft_and_a_tokenizer_are_brought_too(draft: object) -> None:
    assert asked("a/b", speculative_config=draft, tokenizer="a/words") == (
        ModelRef("a/b"),
        ModelRef("a/words", weights=False),
        ModelRef("a/draft"),
    )


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"a": "1 x", "b": "2"}, ""),
        ({"a": "1 x"}, "b is not on h2"),
        ({"a": "1 x", "b": "2", "c": "3"}, "c is not on h1"),
        ({"a": "1 y", "b": "2"}, "a has another content on h2 than on h1"),
        ({"a": "1 x", "b": "3"}, "b has another size on h2 than on h1"),
    ],
)
def test_the_first_difference_is_named(other: dict[str, str], told: str) -> None:
    assert differences({"h1": {"a": "1 x", "b": "2"}, "h2": other}) == told


PLAIN = ("config.json", "tokenizer.json", "chat_template.jinja")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BIN = ("pytorch_model.bin",)
OWN = ("consolidated.safetensors",)
OTHERS = (".gitattributes", "original/params.json", "onnx/model.onnx", "a.gguf", "tf_model.h5")


@pytest.mark.parametrize(
    ("names", "load_format", "weights", "brought"),
    [
        (PLAIN + SHARDS + BIN + OTHERS, "auto", True, PLAIN + SHARDS),
        (PLAIN + BIN + OTHERS, "auto", True, PLAIN + BIN),
        (PLAIN + SHARDS, "dummy", True, PLAIN),
        (PLAIN + SHARDS, "auto", False, PLAIN),
        (PLAIN + SHARDS + OWN, "auto", True, PLAIN + SHARDS),
        (PLAIN + SHARDS + OWN, "mistral", True, PLAIN + OWN),
        (("params.json", *OWN), "auto", True, ("params.json", *OWN)),
        ((*PLAIN, "a.pt", *BIN), "pt", True, (*PLAIN, "a.pt")),
    ],
)
def test_weights_are_brought_in_one_form(
    names: tuple[str, ...], load_format: str, weights: bool, brought: tuple[str, ...]
) -> None:
    assert needed_files(names, load_format, weights=weights) == brought
