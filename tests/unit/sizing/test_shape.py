"""Published configs give the published numbers, and what a config does not tell is said."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.sizing.shape import read_shape
from tests.unit.sizing import published


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (published.LLAMA_3_8B, 8_030_261_248),
        (published.QWEN25_05B, 494_032_768),
        (published.MIXTRAL_8X7B, 46_702_792_704),
        (published.DEEPSEEK_V3, 671_026_419_200),
    ],
    ids=["Llama-3-8B", "Qwen2.5-0.5B", "Mixtral-8x7B", "DeepSeek-V3"],
)
def test_parameters_are_those_that_the_authors_count(
    config: dict[str, Any], parameters: int
) -> None:
    found = read_shape(config).parameters
    assert found == pytest.approx(parameters, rel=0.001)
    assert found is not None
    assert found <= parameters, "never more than there are: a plan is refused by it"


@pytest.mark.parametrize(
    ("config", "values", "kv_heads", "latent"),
    [
        (published.LLAMA_3_8B, 2 * 8 * 128, 8, False),
        (published.QWEN25_05B, 2 * 2 * 64, 2, False),
        (published.MIXTRAL_8X7B, 2 * 8 * 128, 8, False),
        (published.DEEPSEEK_V3, 512 + 64, 1, True),
        (published.GPT_OSS_20B, 2 * 8 * 64, 8, False),
    ],
)
def test_what_a_layer_keeps_for_a_token(
    config: dict[str, Any], values: int, kv_heads: int, latent: bool
) -> None:
    shape = read_shape(config)
    assert (shape.values, shape.kv_heads, shape.latent) == (values, kv_heads, latent)
    assert shape.doubts == ()


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (published.LLAMA_31_8B, 131072),
        (published.DEEPSEEK_V3, 163840),
        ({**published.LLAMA_3_8B, "rope_scaling": {"type": "linear", "factor": 2.0}}, 16384),
        ({**published.LLAMA_3_8B, "seq_length": 4096}, 4096),
        (
            {
                **published.LLAMA_3_8B,
                "rope_scaling": {"type": "longrope", "factor": 32},
                "original_max_position_embeddings": 4096,
            },
            4096,
        ),
        ({"num_hidden_layers": 1}, None),
    ],
)
def test_the_length_is_the_one_that_vllm_takes(config: dict[str, Any], context: int | None) -> None:
    assert read_shape(config).context == context


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    assert set(read_shape(published.GPT_OSS_20B).windows) == {128, None}
    assert set(read_shape(published.QWEN25_05B).windows) == {None}
    assert set(read_shape({**published.MIXTRAL_8X7B, "sliding_window": 4096}).windows) == {4096}
    gemma = {**published.LLAMA_3_8B, "sliding_window": 1024, "sliding_window_pattern": 6}
    assert read_shape(gemma).windows[:7] == (1024, 1024, 1024, 1024, 1024, None, 1024)


def test_a_model_with_images_is_read_by_its_language_part() -> None:
    shape = read_shape({"vision_config": {}, "text_config": published.LLAMA_3_8B})
    assert shape.values == 2 * 8 * 128
    assert shape.parameters is None, "the other part has weights too"


@pytest.mark.parametrize(
    ("config", "doubt"),
    [
        ({}, "its config does not tell layers and heads"),
        ({"num_hidden_layers": "32", "num_attention_heads": True}, "does not tell layers"),
        (published.QWEN3_NEXT, "its config has full_attention_interval"),
        ({**published.DEEPSEEK_V3, "index_topk": 2048}, "its config has index_topk"),
        (
            {**published.LLAMA_3_8B, "layer_types": ["linear_attention"] * 32},
            "its layers keep something else than keys and values",
        ),
    ],
)
def test_what_is_not_understood_is_unknown_and_said(config: dict[str, Any], doubt: str) -> None:
    shape = read_shape(config)
    assert doubt in shape.doubts[0] or doubt in shape.doubts[-1]
    assert shape.values is None


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ({"quant_method": "awq", "bits": 4}, 0.5),
        ({"quant_method": "gptq", "bits": 8}, 1.0),
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5),
        ({"quant_method": "compressed-tensors"}, None),
    ],
)
def test_a_quantized_weight_has_its_own_size(how: dict[str, Any], stored: float | None) -> None:
    shape = read_shape({**published.LLAMA_3_8B, "quantization_config": how})
    assert (shape.quantized, shape.stored_bytes) == (True, stored)
