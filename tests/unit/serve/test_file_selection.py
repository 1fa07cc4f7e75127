from __future__ import annotations

import pytest

from raycluster.serve.file_selection import needed_files

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
