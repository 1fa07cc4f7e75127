"""A model's `config.json` as the figures that its memory follows from; pure.

Nothing here knows models by name: the fields of the config decide. What they do not tell is None,
and `doubts` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

DTYPE_BYTES = {
    **dict.fromkeys(("float32", "float"), 4.0),
    **dict.fromkeys(("bfloat16", "float16", "half"), 2.0),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "float8_e4m3fn", "int8"), 1.0),
}
"""Bytes of a value, by the words of configs and of vLLM's arguments."""
HALF = 2.0
"""Bytes of a value where nothing is said, and of what is stored as float32: vLLM makes it half."""

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Where configs say how long a request may be; vLLM takes the smallest."""
UNSCALED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "mrope")
"""Kinds of RoPE whose factor is not a factor of the length, or already in it."""
NOT_KEYS_AND_VALUES = (
    *(
        "linear_attn_config",
        "ssm_cfg",
        "ssm_state_size",
        "mamba_d_state",
        "hybrid_override_pattern",
    ),
    *("layers_block_type", "attn_layer_period", "full_attention_interval", "compress_ratios"),
    *("num_kv_shared_layers", "cla_share_factor", "index_topk", "is_encoder_decoder"),
)
"""Fields of models that keep something else than each layer's keys and values for each token."""
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Shape:
    """What of a model's architecture its memory follows from.

    `values` are those that one layer keeps for one token: keys and values of all heads, or one
    compressed vector (`latent`), which tensor parallelism does not split. `windows` are the tokens
    that each layer keeps, None for all. `context` are the tokens of a request at most, by the
    config. `stored_bytes` are those of a weight as it is stored.
    """

    parameters: int | None = None
    stored_bytes: float | None = None
    quantized: bool = False
    heads: int | None = None
    kv_heads: int | None = None
    values: int | None = None
    latent: bool = False
    windows: tuple[int | None, ...] = ()
    context: int | None = None
    experts: bool = False
    doubts: tuple[str, ...] = ()


def read_shape(config: Config) -> Shape:
    """Return what a model's config tells."""
    text = _text(config)
    layers, heads = _whole(text, "num_hidden_layers"), _whole(text, "num_attention_heads")
    strange = [key for key in NOT_KEYS_AND_VALUES if text.get(key)]
    doubts = [f"its config has {key}" for key in strange]
    if not layers or not heads:
        doubts.append("its config does not tell layers and heads")
    bytes_, quantized = _stored(config, text)
    values, kv_heads, latent = (None, None, False) if strange else _values(text, heads)
    windows = _windows(text, layers) if layers else ()
    if layers and not windows:
        doubts.append("its layers keep something else than keys and values")
    return Shape(
        parameters=_parameters(text) if text is config and not strange else None,
        stored_bytes=bytes_,
        quantized=quantized,
        heads=heads,
        kv_heads=kv_heads,
        values=values if layers and windows else None,
        latent=latent,
        windows=windows,
        context=_context(text),
        experts=bool(_experts(text)),
        doubts=tuple(doubts),
    )


def _text(config: Config) -> Config:
    """Return the part that describes the language model, of one with images too."""
    if "num_hidden_layers" in config:
        return config
    parts = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
    return next((part for part in parts if isinstance(part, Mapping)), config)


def _whole(config: Config, *keys: str) -> int | None:
    """Return the first of these fields that is a whole number above 0."""
    found = (config.get(key) for key in keys)
    return next((n for n in found if type(n) is int and n > 0), None)


def _head_size(text: Config, heads: int) -> int | None:
    hidden = _whole(text, "hidden_size")
    return _whole(text, "head_dim", "hidden_size_per_head") or (hidden // heads if hidden else None)


def _values(text: Config, heads: int | None) -> tuple[int | None, int | None, bool]:
    """Return the values per token and layer, the heads that they are of, and whether latent."""
    if not heads:
        return None, None, False
    if rank := _whole(text, "kv_lora_rank"):
        rope = _whole(text, "qk_rope_head_dim")
        return (rank + rope if rope else None), 1, True
    kv_heads, size = _whole(text, "num_key_value_heads") or heads, _head_size(text, heads)
    return (2 * kv_heads * size if size else None), kv_heads, False


def _windows(text: Config, layers: int) -> tuple[int | None, ...]:
    """Return the tokens that each layer keeps; nothing where a layer keeps something else."""
    window = _whole(text, "sliding_window") if text.get("use_sliding_window", True) else None
    kinds = text.get("layer_types")
    if isinstance(kinds, list | tuple):
        known = len(kinds) == layers and all(kind in (FULL, SLIDING) for kind in kinds)
        return tuple(window if kind == SLIDING else None for kind in kinds) if known else ()
    if every := _whole(text, "sliding_window_pattern"):
        return tuple(None if (i + 1) % every == 0 else window for i in range(layers))
    return (window,) * layers


def _context(text: Config) -> int | None:
    lengths = [n for key in CONTEXT_KEYS if (n := _whole(text, key))]
    if not lengths:
        return None
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    original = _whole(text, "original_max_position_embeddings")
    if kind == "longrope" and original:
        return original
    factor = rope.get("factor") if kind not in UNSCALED and "gemma3" not in _kind(text) else 1
    return int(min(lengths) * (factor if isinstance(factor, int | float) else 1))


def _kind(text: Config) -> str:
    return str(text.get("model_type") or "")


def dtype_bytes(config: Config) -> float | None:
    """Return the bytes of a value by the config's own dtype, or None where it tells none."""
    for part in (config, _text(config)):
        named = part.get("dtype") or part.get("torch_dtype")
        if isinstance(named, str):
            return DTYPE_BYTES.get(named.removeprefix("torch."))
    return None


def _stored(config: Config, text: Config) -> tuple[float | None, bool]:
    """Return the bytes of a stored weight, and whether it is quantized."""
    how = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(how, Mapping):
        return dtype_bytes(config), False
    if bits := _whole(how, "bits", "w_bit"):
        return bits / 8, True
    if how.get("load_in_4bit"):
        return 0.5, True
    return {"fp8": 1.0, "fbgemm_fp8": 1.0, "mxfp4": 0.5}.get(str(how.get("quant_method"))), True


def _parameters(text: Config) -> int | None:
    """Return the number of weights of a decoder, without biases: true to about one percent.

    Where a config leaves open whether it has another matrix, it is not counted.
    """
    layers, heads = _whole(text, "num_hidden_layers"), _whole(text, "num_attention_heads")
    hidden, vocabulary = _whole(text, "hidden_size"), _whole(text, "vocab_size")
    inner = _whole(text, "intermediate_size")
    if not (layers and heads and hidden and vocabulary and inner):
        return None
    attention = _attention(text, hidden, heads)
    if attention is None:
        return None
    tied = text.get("tie_word_embeddings", True)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    matrices = 3 if text.get("hidden_act") in ("silu", "swish", "swiglu") else 2
    dense = matrices * hidden * inner
    experts = _experts(text)
    if not experts:
        return embeddings + layers * (attention + dense)
    one = matrices * hidden * (_whole(text, "moe_intermediate_size") or inner)
    shared = one * (_whole(text, "n_shared_experts") or 0)
    shared += matrices * hidden * (_whole(text, "shared_expert_intermediate_size") or 0)
    sparse = experts * (one + hidden) + shared
    first = _whole(text, "first_k_dense_replace") or 0
    only = text.get("mlp_only_layers")
    first += len(only) if isinstance(only, list) else 0
    step = _whole(text, "decoder_sparse_step", "moe_layer_freq") or 1
    sparse_layers = max(0, layers - first) // step
    return (
        embeddings + layers * attention + sparse_layers * sparse + (layers - sparse_layers) * dense
    )


def _experts(text: Config) -> int | None:
    return _whole(text, "num_local_experts", "n_routed_experts", "num_experts")


def _attention(text: Config, hidden: int, heads: int) -> int | None:
    size = _head_size(text, heads)
    if rank := _whole(text, "kv_lora_rank"):
        rope, nope = _whole(text, "qk_rope_head_dim"), _whole(text, "qk_nope_head_dim")
        value = _whole(text, "v_head_dim")
        if not (rope and nope and value):
            return None
        query = _whole(text, "q_lora_rank")
        asked = heads * (nope + rope)
        queries = query * (hidden + asked) if query else hidden * asked
        return (
            queries
            + hidden * (rank + rope)
            + rank * heads * (nope + value)
            + heads * value * hidden
        )
    if not size:
        return None
    kv_heads = _whole(text, "num_key_value_heads") or heads
    return 2 * hidden * heads * size + 2 * hidden * kv_heads * size
