"""A model's `config.json` as the figures that its memory follows from; pure.

The fields of the config decide. What they do not tell is None, and `doubts` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from raycluster.plan.sizing.layers import (
    LARGEST,
    MOST_LAYERS,
    CacheLayers,
    Config,
    Layer,
    read_layers,
    whole,
)

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
GEMMA_HEAD = 256
"""Values of a head where a config of Gemma does not tell them, by transformers' classes."""
UNSCALED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "mrope")
"""Kinds of RoPE whose factor is not a factor of the length, or already in it."""


@dataclass(frozen=True)
class ModelShape:
    """What of a model's architecture its memory follows from.

    `values` are those that one layer keeps for one token: keys and values of all heads, or one
    compressed vector (`latent`), which tensor parallelism does not split; `cache_bytes` are those
    of a value where the weights come with a kind of their own. `layers` are those that keep some;
    `stateful` says that others keep a state, which is not counted. `context` are the tokens of a
    request at most, by the config. `stored_bytes` are those of a weight as it is stored.
    """

    parameters: int | None = None
    stored_bytes: float | None = None
    quantized: bool = False
    heads: int | None = None
    kv_heads: int | None = None
    values: int | None = None
    latent: bool = False
    layers: tuple[Layer, ...] = ()
    stateful: bool = False
    cache_bytes: float | None = None
    context: int | None = None
    experts: bool = False
    doubts: tuple[str, ...] = ()


def read_shape(config: Config) -> ModelShape:
    """Return what a model's config tells."""
    text = _text(config)
    count, heads = whole(text, "num_hidden_layers"), whole(text, "num_attention_heads")
    if count and count > MOST_LAYERS:
        count = None
    layers = read_layers(text, count) if count else CacheLayers()
    doubts = [layers.doubt] if layers.doubt else []
    if not count or not heads:
        doubts.append("its config does not specify layers and heads")
    how = config.get("quantization_config") or text.get("quantization_config")
    cache_bytes, cached = _cached(how) if isinstance(how, Mapping) else (None, True)
    if not cached:
        doubts.append("its config has keys and values of an unknown type")
    bytes_, quantized = _stored(how) if isinstance(how, Mapping) else (dtype_bytes(config), False)
    known = bool(layers.kept) and cached
    values, kv_heads, latent = _values(text, heads) if known else (None, None, False)
    counted = text is config and bool(layers.kept) and not layers.stateful
    return ModelShape(
        parameters=_parameters(text) if counted else None,
        stored_bytes=bytes_,
        quantized=quantized,
        heads=heads,
        kv_heads=kv_heads,
        values=values,
        latent=latent,
        layers=layers.kept,
        stateful=layers.stateful,
        cache_bytes=cache_bytes,
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


def _head_size(text: Config, heads: int) -> int | None:
    hidden = whole(text, "hidden_size")
    if told := whole(text, "head_dim", "hidden_size_per_head"):
        return told
    if _kind(text).startswith("gemma"):
        return GEMMA_HEAD
    return hidden // heads if hidden else None


def _kv_heads(text: Config, heads: int) -> int:
    """Return the heads of keys and values; older configs say `multi_query` where it is one."""
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    return whole(text, "num_key_value_heads", "num_kv_heads") or heads


def _values(text: Config, heads: int | None) -> tuple[int | None, int | None, bool]:
    """Return the values per token and layer, the heads that they are of, and whether latent."""
    if not heads:
        return None, None, False
    if rank := whole(text, "kv_lora_rank"):
        rope = whole(text, "qk_rope_head_dim")
        return (rank + rope if rope else None), 1, True
    kv_heads, size = _kv_heads(text, heads), _head_size(text, heads)
    return (2 * kv_heads * size if size else None), kv_heads, False


def _context(text: Config) -> int | None:
    lengths = [n for key in CONTEXT_KEYS if (n := whole(text, key))]
    if not lengths:
        return None
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return min(lengths)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    original = whole(text, "original_max_position_embeddings")
    if kind == "longrope" and original:
        return original
    factor = rope.get("factor") if kind not in UNSCALED and "gemma3" not in _kind(text) else 1
    if not isinstance(factor, int | float) or not 0 < factor <= LARGEST:
        factor = 1
    return int(min(lengths) * factor)


def _kind(text: Config) -> str:
    return str(text.get("model_type") or "")


def dtype_bytes(config: Config) -> float | None:
    """Return the bytes of a value by the config's own dtype, or None where it tells none."""
    for part in (config, _text(config)):
        named = part.get("dtype") or part.get("torch_dtype")
        if isinstance(named, str):
            return DTYPE_BYTES.get(named.removeprefix("torch."))
    return None


def _stored(how: Config) -> tuple[float | None, bool]:
    """Return the bytes of a weight that is quantized so, and that it is.

    Embeddings and other parts are left as they were, so that this is the least.
    """
    if bits := _bits(how):
        return bits / 8, True
    algorithm = str(how.get("quant_algo") or how.get("quant_method")).lower()
    sizes = {"fp8": 1.0, "fbgemm_fp8": 1.0, "mxfp4": 0.5, "nvfp4": 0.5}
    return sizes.get(algorithm), True


def _bits(how: Config) -> int | None:
    """Return the bits of a weight, of the smallest where there are several kinds."""
    if how.get("load_in_4bit"):
        return 4
    groups = how.get("config_groups")
    parts = [g.get("weights") for g in groups.values() if _is_map(g)] if _is_map(groups) else []
    several = [n for part in parts if _is_map(part) and (n := whole(part, "num_bits"))]
    return min(several, default=None) or whole(how, "bits", "w_bit")


def _is_map(value: object) -> TypeGuard[Config]:
    return isinstance(value, Mapping)


def _cached(how: Config) -> tuple[float | None, bool]:
    """Return the bytes of a value in the cache, None for the model's own, and whether known.

    vLLM's `get_kv_cache_quant_algo_string`, and its compressed-tensors.
    """
    scheme = how.get("kv_cache_scheme") or how.get("kv_cache_quant_algo")
    if not scheme:
        return None, True
    if isinstance(scheme, Mapping):
        eight = scheme.get("num_bits") == 8 and scheme.get("type", "float") == "float"
    else:
        eight = str(scheme).lower() in DTYPE_BYTES and DTYPE_BYTES[str(scheme).lower()] == 1
    return (1.0, True) if eight else (None, False)


def _parameters(text: Config) -> int | None:
    """Return the number of weights of a decoder, without biases: true to about one percent.

    Where a config leaves open whether it has another matrix, it is not counted.
    """
    layers, heads = whole(text, "num_hidden_layers"), whole(text, "num_attention_heads")
    hidden, vocabulary = whole(text, "hidden_size"), whole(text, "vocab_size")
    inner = whole(text, "intermediate_size")
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
    one = matrices * hidden * (whole(text, "moe_intermediate_size") or inner)
    shared = one * (whole(text, "n_shared_experts") or 0)
    shared += matrices * hidden * (whole(text, "shared_expert_intermediate_size") or 0)
    sparse = experts * (one + hidden) + shared
    first = whole(text, "first_k_dense_replace") or 0
    only = text.get("mlp_only_layers")
    first += len(only) if isinstance(only, list) else 0
    step = whole(text, "decoder_sparse_step", "moe_layer_freq") or 1
    sparse_layers = max(0, layers - first) // step
    return (
        embeddings + layers * attention + sparse_layers * sparse + (layers - sparse_layers) * dense
    )


def _experts(text: Config) -> int | None:
    return whole(text, "num_local_experts", "n_routed_experts", "num_experts")


def _attention(text: Config, hidden: int, heads: int) -> int | None:
    size = _head_size(text, heads)
    if rank := whole(text, "kv_lora_rank"):
        rope, nope = whole(text, "qk_rope_head_dim"), whole(text, "qk_nope_head_dim")
        value = whole(text, "v_head_dim")
        if not (rope and nope and value):
            return None
        query = whole(text, "q_lora_rank")
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
    kv_heads = _kv_heads(text, heads)
    return 2 * hidden * heads * size + 2 * hidden * kv_heads * size
