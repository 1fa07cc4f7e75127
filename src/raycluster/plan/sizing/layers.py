"""Which layers of a model keep keys and values, and of how many tokens, by its config; pure.

Fields decide. Where a config leaves them out, vLLM takes what transformers' classes fill in, which
differs from one kind of model to another: only those are known here by `model_type`. vLLM's places
are those of 0.32.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Config = Mapping[str, Any]
Kind = Literal["full", "sliding", "chunked"]


@dataclass(frozen=True)
class Layer:
    """What one layer keeps: all tokens, or those of a window or of a chunk."""

    kind: Kind = "full"
    tokens: int = 0


@dataclass(frozen=True)
class CacheLayers:
    """The layers that keep keys and values, nothing with a doubt where that is not understood.

    `stateful` says that others keep a state of fixed size, which is not counted.
    """

    kept: tuple[Layer, ...] = ()
    stateful: bool = False
    doubt: str = ""


FULL = Layer()
FULL_EVERY = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "olmo3": 4, "gemma3_text": 6}
"""Every how many layers one keeps all tokens, by transformers' classes (`configuration_*.py`)."""
ALL_SLIDING = ("mistral", "mixtral", "ministral", "starcoder2", "phi3", "phimoe")
"""Kinds whose window is that of every layer (vLLM's `engine/arg_utils.py`, `layer_types`)."""
NEVER_LEFT_OUT = ("mistral", "ministral", *FULL_EVERY)
"""Kinds that transformers' classes give a window where the config has no word of one."""
STATES = ("linear_attention", "mamba", "conv")
"""Words of `layer_types` for layers that keep a state of fixed size."""
NOT_UNDERSTOOD = (
    *("ssm_cfg", "state_size", "compress_ratios", "num_kv_shared_layers", "cla_share_factor"),
    *("index_topk", "is_encoder_decoder", "block_configs", "cross_attention_layers"),
    *("attn_type_list", "layer_group_size", "global_head_dim", "num_global_key_value_heads"),
    *("swa_num_key_value_heads", "swa_head_dim", "num_attention_groups", "layers_block_type"),
)
"""Fields of models that keep something else than each layer's keys and values for each token."""
OF_STATES = ("ssm_state_size", "mamba_d_state", "linear_attn_config", "linear_conv_kernel_dim")
"""Fields of models some of whose layers keep a state; another one has to tell which."""


LARGEST = 1 << 40
"""No figure of a config is larger."""
MOST_LAYERS = 10_000


def read_layers(text: Config, count: int) -> CacheLayers:
    """Return what the layers keep; `text` describes the language model."""
    hybrid = _hybrid(text, count)
    if doubt := _doubt(text, states=hybrid is not None):
        return CacheLayers(doubt=doubt)
    if hybrid:
        return hybrid
    if chunk := whole(text, "attention_chunk_size"):
        return _chunked(text, count, chunk)
    return _windowed(text, count)


def _doubt(text: Config, *, states: bool) -> str:
    """Return why a config is not understood; `states` tells that it says which layers have one."""
    unknown = NOT_UNDERSTOOD if states else (*NOT_UNDERSTOOD, *OF_STATES)
    if strange := next((key for key in unknown if text.get(key)), ""):
        return f"its config has {strange}"
    if text.get("v_head_dim") and not text.get("kv_lora_rank"):
        return "its keys and values differ in size"
    if text.get("model_type") in NEVER_LEFT_OUT and "sliding_window" not in text:
        return "its config does not specify the sliding window"
    return ""


def whole(config: Config, *keys: str) -> int | None:
    """Return the first of these fields that is a whole number above 0, as a model has."""
    found = (config.get(key) for key in keys)
    return next((n for n in found if type(n) is int and 0 < n <= LARGEST), None)


def _hybrid(text: Config, count: int) -> CacheLayers | None:
    """Return the layers with attention of a model where others keep a state, None for others."""
    attention: int | None = None
    kinds = text.get("layer_types")
    linear = text.get("linear_attn_config")
    if isinstance(kinds, list) and any(kind in STATES for kind in kinds):
        words = ("full_attention", "attention", *STATES)
        known = len(kinds) == count and all(kind in words for kind in kinds)
        attention = sum(kind not in STATES for kind in kinds) if known else None
    elif isinstance(pattern := text.get("hybrid_override_pattern"), str):
        attention = pattern.count("*") if set(pattern) <= set("M*-E") else None
    elif isinstance(linear, Mapping):
        indices = linear.get("full_attn_layers")
        attention = len(indices) if isinstance(indices, list) else None
    elif isinstance(indices := text.get("attn_layer_indices") or text.get("full_attn_idxs"), list):
        attention = len(indices)
    elif every := whole(text, "full_attention_interval", "attn_layer_period"):
        offset = text.get("attn_layer_offset", every - 1)
        attention = sum(i % every == offset for i in range(count))
    elif whole(text, "mamba_d_ssm"):
        attention = count  # both in each layer
    else:
        return None
    if not attention or attention > count or text.get("sliding_window"):
        return CacheLayers(doubt="its layers cache something other than keys and values")
    return CacheLayers((FULL,) * attention, stateful=True)


def _chunked(text: Config, count: int, chunk: int) -> CacheLayers:
    """Return the layers of Llama 4: those without RoPE keep all (vLLM's `models/llama4.py`)."""
    rope = text.get("no_rope_layers")
    if isinstance(rope, list) and len(rope) == count:
        full = [not rotates for rotates in rope]
    elif not rope:
        every = whole(text, "no_rope_layer_interval") or 4
        full = [(i + 1) % every == 0 for i in range(count)]
    else:
        return CacheLayers(doubt="its config does not specify which layers use chunked attention")
    return CacheLayers(tuple(FULL if whole_ else Layer("chunked", chunk) for whole_ in full))


def _windowed(text: Config, count: int) -> CacheLayers:
    kind = str(text.get("model_type") or "")
    of_qwen = "qwen" in kind or "max_window_layers" in text
    window = whole(text, "sliding_window") if text.get("use_sliding_window", not of_qwen) else None
    sliding = Layer("sliding", window) if window else FULL
    kinds = text.get("layer_types")
    if isinstance(kinds, list | tuple):
        words = ("full_attention", "sliding_attention")
        known = len(kinds) == count and all(kind in words for kind in kinds)
        if not known:
            return CacheLayers(doubt="its layers cache something other than keys and values")
        return CacheLayers(
            tuple(sliding if kind == "sliding_attention" else FULL for kind in kinds)
        )
    every = whole(text, "sliding_window_pattern") or FULL_EVERY.get(kind)
    if every and sliding != FULL:
        return CacheLayers(tuple(FULL if (i + 1) % every == 0 else sliding for i in range(count)))
    if sliding == FULL or kind in ALL_SLIDING:
        return CacheLayers((sliding,) * count)
    if (whole(text, "max_window_layers") or 0) >= count:
        return CacheLayers((FULL,) * count)
    return CacheLayers(doubt="its config does not specify which layers use the sliding window")


GPU_BLOCK, CPU_BLOCK, LATENT_CPU_BLOCK = 16, 128, 16
"""Tokens of a block: a GPU's kernels want this many or a multiple of it."""
SLIGHTLY_MORE = 1.5
"""Up to so many times the layers of the rarest kind, groups are as large as the most common."""


@dataclass(frozen=True)
class CacheArguments:
    """What an engine's arguments say of its cache.

    `batch` are the tokens of one step, and `steps` are those in flight at once. `block` is None
    where the device decides. `promoted` says that layers with a window keep all tokens beside
    others that do.
    """

    batch: int = 2048
    steps: int = 1
    block: int | None = None
    promoted: bool = False


def blocks(layer: Layer, length: int, engine: CacheArguments, block: int) -> int:
    """Return the blocks that a layer keeps at most: vLLM's `max_admission_blocks_per_request`."""
    flight = engine.batch * engine.steps
    if layer.kind == "sliding":
        return math.ceil(min(layer.tokens - 1 + flight, length) / block) + 1
    if layer.kind == "chunked":
        return math.ceil(min(layer.tokens + flight, length) / block)
    return math.ceil(length / block)


def tokens_kept(layers: Sequence[Layer], length: int, engine: CacheArguments, block: int) -> int:
    """Return the tokens of one layer that all layers and the padding between them come to.

    vLLM gives all kinds of layers groups of one size, and fills them up
    (`_get_kv_cache_groups_uniform_page_size`).
    """
    kinds = Counter(FULL if engine.promoted and FULL in layers else each for each in layers)
    if not kinds:
        return 0
    size, most = min(kinds.values()), max(kinds.values())
    if most < SLIGHTLY_MORE * size:
        size = most
    groups = (
        math.ceil(count / size) * blocks(kind, length, engine, block)
        for kind, count in kinds.items()
    )
    return sum(groups) * size * block
