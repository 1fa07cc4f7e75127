"""Published configs give the published numbers, and what a config does not tell is said."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.plan.sizing.shape import read_shape
from tests.unit.plan.sizing import published


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


def windows(config: dict[str, Any]) -> set[tuple[str, int]]:
    return {(layer.kind, layer.tokens) for layer in read_shape(config).layers}


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    full = ("full", 0)
    assert windows(published.GPT_OSS_20B) == {("sliding", 128), full}
    assert windows(published.QWEN25_05B) == {full}
    assert windows({**published.MIXTRAL_8X7B, "sliding_window": 4096}) == {("sliding", 4096)}
    gemma = {**published.LLAMA_3_8B, "sliding_window": 1024, "sliding_window_pattern": 6}
    kinds = [layer.kind for layer in read_shape(gemma).layers[:7]]
    assert kinds == [*["sliding"] * 5, "full", "sliding"]


def test_llama_4_keeps_all_tokens_where_it_has_no_rope() -> None:
    scout = {**published.LLAMA_3_8B, "attention_chunk_size": 8192, "no_rope_layers": []}
    kinds = [layer.kind for layer in read_shape(scout).layers]
    assert kinds == ["chunked", "chunked", "chunked", "full"] * 8
    told = {**scout, "no_rope_layers": [1] * 31 + [0]}
    assert [layer.kind for layer in read_shape(told).layers].count("full") == 1


@pytest.mark.parametrize(
    ("fields", "attention"),
    [
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, 16),
        ({"layer_types": ["mamba"] * 31 + ["attention"]}, 1),
        ({"full_attention_interval": 4, "linear_conv_kernel_dim": 4}, 8),
        ({"attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16}, 4),
        ({"attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}, 3),
        ({"hybrid_override_pattern": "M-M*" * 8, "ssm_state_size": 128}, 8),
        ({"linear_attn_config": {"full_attn_layers": [4, 8]}}, 2),
        ({"mamba_d_ssm": 3072, "mamba_d_state": 256}, 32),
    ],
)
def test_beside_layers_with_a_state_those_with_attention_count(
    fields: dict[str, Any], attention: int
) -> None:
    shape = read_shape({**published.LLAMA_3_8B, **fields})
    assert (len(shape.layers), shape.stateful, shape.parameters) == (attention, True, None)


def test_older_configs_say_that_all_heads_have_one_key() -> None:
    config = {k: v for k, v in published.LLAMA_3_8B.items() if k != "num_key_value_heads"}
    assert read_shape({**config, "multi_query": True}).kv_heads == 1
    assert read_shape(config).kv_heads == 32


def test_what_transformers_fills_in_for_gemma() -> None:
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    }
    told = read_shape({**config, "sliding_window": 1024})
    assert told.values == 2 * 8 * 256, "not 3840 / 16"
    assert [layer.kind for layer in told.layers].count("full") == 8
    assert read_shape(config).doubts == ("its config does not specify the sliding window",)


@pytest.mark.parametrize(
    ("how", "bytes_", "known"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, None, True),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, 1.0, True),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, 1.0, True),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "NVFP4"}, None, False),
        ({"kv_cache_scheme": {"num_bits": 4, "type": "float"}}, None, False),
    ],
)
def test_weights_may_come_with_a_kind_of_cache(
    how: dict[str, Any], bytes_: float | None, known: bool
) -> None:
    shape = read_shape({**published.LLAMA_3_8B, "quantization_config": how})
    assert (shape.cache_bytes, shape.values is not None) == (bytes_, known)
    assert bool(shape.doubts) is not known


def test_a_model_with_images_is_read_by_its_language_part() -> None:
    shape = read_shape({"vision_config": {}, "text_config": published.LLAMA_3_8B})
    assert shape.values == 2 * 8 * 128
    assert shape.parameters is None, "the other part has weights too"


@pytest.mark.parametrize(
    ("config", "doubt"),
    [
        ({}, "its config does not specify layers and heads"),
        ({"num_hidden_layers": "32", "num_attention_heads": True}, "does not specify layers"),
        ({**published.LLAMA_3_8B, "layer_types": [{}] * 32}, "its layers cache something other"),
        ({**published.LLAMA_3_8B, "ssm_state_size": 128}, "its config has ssm_state_size"),
        ({**published.LLAMA_3_8B, "num_kv_shared_layers": 15}, "has num_kv_shared_layers"),
        ({**published.LLAMA_3_8B, "v_head_dim": 64}, "its keys and values differ"),
        (
            {**published.LLAMA_3_8B, "sliding_window": 4096},
            "does not specify which layers use the sliding window",
        ),
        ({**published.DEEPSEEK_V3, "index_topk": 2048}, "its config has index_topk"),
        (
            {**published.LLAMA_3_8B, "layer_types": ["linear_attention"] * 32},
            "its layers cache something other than keys and values",
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
        ({"config_groups": {"a": {"weights": {"num_bits": 4}}}}, 0.5),
        ({"config_groups": {"a": {"weights": {"num_bits": 8}}, "b": None}}, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0),
        ({"quant_method": "mxfp4"}, 0.5),
        ({"quant_method": "gguf"}, None),
    ],
)
def test_a_quantized_weight_has_its_own_size(how: dict[str, Any], stored: float | None) -> None:
    shape = read_shape({**published.LLAMA_3_8B, "quantization_config": how})
    assert (shape.quantized, shape.stored_bytes) == (True, stored)
