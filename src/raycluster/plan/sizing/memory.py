"""Whether a model fits into a GPU's or a host's memory, and how many requests with it; pure.

What is counted is what is certain: weights and what they leave for keys and values. Activations,
CUDA graphs and the engine's own memory come on top, so that "does not fit" is true, and a number of
requests is "up to".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raycluster.plan.sizing.layers import (
    CPU_BLOCK,
    GPU_BLOCK,
    LATENT_CPU_BLOCK,
    CacheArguments,
    tokens_kept,
)
from raycluster.plan.sizing.shape import DTYPE_BYTES, HALF, ModelShape
from raycluster.serve.settings import CPU_KV_GIB, GPU_MEMORY
from raycluster.spec import Model

GIB = 1 << 30
ROUND = 1024
"""Tokens that a proposed length is a multiple of."""
CHANGES_WEIGHTS = ("quantization", "hf_overrides", "load_format", "model_impl")
"""Engine arguments with which the stored weights, or the config, are not what is loaded."""
CACHE_AS_USUAL = {"decode_context_parallel_size": 1, "disable_sliding_window": False}
"""Engine arguments that, if not so, give a request another length or another part of a device."""
BATCHES = ((160, 16384), (70, 8192))
"""GiB of a GPU from which on vLLM's server takes so many tokens into a step, if not told."""
BATCH = 2048
AS_STORED: Mapping[str, tuple[object, ...]] = {
    "quantization": (None, ""),
    "load_format": (None, "", "auto", "safetensors", "pt", "dummy", "mistral"),
    "model_impl": (None, "", "auto", "vllm"),
    "hf_overrides": (None, "", {}),
}


@dataclass(frozen=True)
class EngineSettings:
    """What the spec asks of a model's engine.

    `tensor` and `pipeline` split the weights; each of `data` engines has all of them.
    `share` is of a GPU's memory; `kv_bytes` is a fixed room for keys and values on each device.
    `length` is None where the config decides, and `fitted` where the engine fits it to the memory.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    share: float = 1.0
    reserves: bool = True
    kv_bytes: int | None = None
    offloaded: int = 0
    length: int | None = None
    fitted: bool = False
    requests: int = 1
    dtype: float | None = None
    kv_dtype: float | None = None
    engine: CacheArguments = field(default_factory=CacheArguments)
    on_cpu: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """GPUs, or processes, that the weights of one engine are split over."""
        return self.tensor * self.pipeline


def batch_on(memory: int | None, name: str) -> int:
    """Return the tokens of a step on a GPU of this name (vLLM's `get_batch_defaults`)."""
    sizes = BATCHES if "a100" not in name.lower() else BATCHES[:1]
    return next((batch for size, batch in sizes if (memory or 0) >= size * GIB), BATCH)


def ask_of(
    model: Model, *, gpus: float, env: Mapping[str, str], batch: int = BATCH
) -> EngineSettings:
    """Return what is asked of a model's engine on `gpus` per replica, or on a CPU with 0.

    `env` is the environment of the replicas, `batch` the tokens of a step if nothing says others.
    """
    args = {name.replace("-", "_"): value for name, value in model.engine_args.items()}
    length, fitted = _length(args.get("max_model_len"))
    doubts = [
        f"engine_args: {name} changes what is loaded"
        for name in CHANGES_WEIGHTS
        if args.get(name) not in AS_STORED[name]
    ]
    kv_dtype = str(args.get("kv_cache_dtype") or "auto")
    if kv_dtype not in ("auto", *DTYPE_BYTES):
        doubts.append(f"engine_args: kv_cache_dtype {kv_dtype} is unknown")
    doubts += [f"engine_args: {name} changes the cache" for name in _changes_cache(args)]
    vllm = model.engine != "transformers"
    kv_bytes = _kv_bytes(args.get("kv_cache_memory_bytes"), env, cpu=not gpus) if vllm else None
    shared = vllm and gpus and not kv_bytes
    return EngineSettings(
        tensor=model.tensor,
        pipeline=model.pipeline,
        data=model.data,
        share=_share(args.get("gpu_memory_utilization"), gpus) if shared else 1.0,
        reserves=vllm,
        kv_bytes=kv_bytes,
        offloaded=int(_number(args.get("cpu_offload_gb")) * GIB) if gpus else 0,
        length=length,
        fitted=fitted,
        requests=min(model.max_ongoing_requests, int(_number(args.get("max_num_seqs")) or 10**6)),
        dtype=DTYPE_BYTES.get(str(args.get("dtype") or "auto")),
        kv_dtype=DTYPE_BYTES.get(kv_dtype),
        engine=_engine(model, args, batch, cpu=not gpus),
        on_cpu=not gpus,
        doubts=tuple(doubts),
    )


def _changes_cache(args: Mapping[str, object]) -> list[str]:
    return [name for name, usual in CACHE_AS_USUAL.items() if args.get(name) not in (None, usual)]


def _engine(model: Model, args: Mapping[str, object], batch: int, *, cpu: bool) -> CacheArguments:
    """Return what decides on the cache.

    One GPU computes a step while the next is prepared. With several, vLLM's way between them
    decides on that, and fewer are taken for granted.
    """
    alone = not cpu and model.tensor * model.pipeline == 1
    ahead = alone and args.get("async_scheduling") is not False
    if args.get("speculative_config") or args.get("distributed_executor_backend") == "ray":
        ahead = False  # of some kinds vLLM prepares no step ahead
    return CacheArguments(
        batch=int(_number(args.get("max_num_batched_tokens"))) or batch,
        steps=2 if ahead else model.pipeline,
        block=int(_number(args.get("block_size"))) or None,
        promoted=args.get("disable_hybrid_kv_cache_manager") is True,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _length(given: object) -> tuple[int | None, bool]:
    """Read vLLM's ways to say a length: 4096, "4k" and "4K", or -1 and "auto" for what fits."""
    if given in (-1, "-1", "auto"):
        return None, True
    units = {"k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20, "g": 10**9, "G": 1 << 30}
    text = str(given or "")
    try:
        return (int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)), False
    except ValueError:
        return None, False


def _share(given: object, gpus: float) -> float:
    return _number(given) or GPU_MEMORY * (gpus if gpus < 1 else 1)


def _kv_bytes(given: object, env: Mapping[str, str], *, cpu: bool) -> int | None:
    if not cpu:
        return int(_number(given)) or None
    said = env.get("VLLM_CPU_KVCACHE_SPACE") or str(CPU_KV_GIB)
    return int(said) * GIB if said.isdecimal() else None


@dataclass(frozen=True)
class ReplicaMemory:
    """What one replica holds in memory, in bytes.

    None is unknown; `per_token` is for all layers of the whole model, `length` in tokens.
    """

    weights: int | None
    parameters: int | None
    per_token: float | None
    length: int | None
    doubts: tuple[str, ...]


def load_of(ask: EngineSettings, shape: ModelShape, stored: int | None) -> ReplicaMemory:
    """Return what a model needs; `stored` are the bytes of its weights on disk, if known."""
    changed = any("changes what is loaded" in doubt for doubt in ask.doubts)
    shared = ask.data > 1 and shape.experts
    weights = None if changed or shared else _weights(ask, shape, stored)
    certain = not any("kv_cache_dtype" in d or "the cache" in d for d in ask.doubts)
    value = shape.values * _value_bytes(ask, shape) if shape.values and certain else None
    per_token = value * len(shape.layers) if value and not changed else None
    doubts = (*ask.doubts, *shape.doubts)
    if shared:
        doubts += ("data parallel engines share its experts",)
    if weights is None and not doubts:
        doubts = ("the size of its weights is unknown",)
    length = ask.length or shape.context
    return ReplicaMemory(weights, shape.parameters, per_token, length, doubts)


def _value_bytes(ask: EngineSettings, shape: ModelShape) -> float:
    return ask.kv_dtype or shape.cache_bytes or ask.dtype or HALF


def _weights(ask: EngineSettings, shape: ModelShape, stored: int | None) -> int | None:
    loaded = ask.dtype or HALF
    if stored is not None:
        if shape.quantized or not shape.stored_bytes:
            return stored
        return int(stored * loaded / shape.stored_bytes)
    if shape.parameters is None:
        return None
    if shape.quantized:
        return int(shape.parameters * shape.stored_bytes) if shape.stored_bytes else None
    return int(shape.parameters * loaded)


@dataclass(frozen=True)
class Fit:
    """How one replica fits into one device of a host: a GPU, or the host's own memory. In bytes.

    `budget` is what the engine may take; `room` what the weights leave of it for keys and values,
    `request` what one of the asked length takes of that. `at_once` is how many such requests there
    is room for. `problem` says why it cannot fit, `hint` what to change.
    """

    memory: int | None = None
    budget: int | None = None
    weights: int | None = None
    room: int | None = None
    request: int | None = None
    at_once: float | None = None
    problem: str = ""
    hint: str = ""


def request_bytes(ask: EngineSettings, shape: ModelShape, length: int) -> int | None:
    """Return what one request of so many tokens takes on each device at least.

    States that layers without attention keep are left out.
    """
    if not (shape.values and shape.layers and shape.kv_heads):
        return None
    split = 1 if shape.latent else max(1, shape.kv_heads // ask.tensor) / shape.kv_heads
    usual = LATENT_CPU_BLOCK if shape.latent else CPU_BLOCK
    block = ask.engine.block or (usual if ask.on_cpu else GPU_BLOCK)
    tokens = tokens_kept(shape.layers, length, ask.engine, block)
    return int(tokens * shape.values * split * _value_bytes(ask, shape) / ask.pipeline)


def fit(
    ask: EngineSettings, shape: ModelShape, load: ReplicaMemory, memory: int | None, *, gpu: bool
) -> Fit:
    """Return how a replica fits where each device has so much memory, of which none is used."""
    if memory is None or load.weights is None:
        return Fit(memory=memory)
    budget = int(memory * ask.share)
    devices = ask.devices if gpu else 1
    engines = 1 if gpu else ask.data
    weights = max(0, load.weights * engines // devices - ask.offloaded)
    fixed = ask.kv_bytes if devices == ask.devices and engines == 1 else None
    room = max(0, budget - weights) if fixed is None else fixed
    seen = Fit(memory=memory, budget=budget, weights=weights, room=room)
    if weights + (fixed or 0) > budget:
        problem = _too_heavy(seen, fixed, gpu=gpu)
        return replace(seen, problem=problem, hint=_lighter(ask, shape, load, budget, gpu=gpu))
    return _with_requests(ask, shape, load, seen, gpu=gpu)


def _with_requests(
    ask: EngineSettings, shape: ModelShape, load: ReplicaMemory, seen: Fit, *, gpu: bool
) -> Fit:
    """Return how many requests fit beside the weights, and what is wrong where none does."""
    room = seen.room or 0
    if load.per_token is None or load.length is None:
        return seen
    request = request_bytes(ask, shape, load.length)
    if not request:
        return seen
    seen = replace(seen, request=request, at_once=room / request * (ask.data if gpu else 1))
    if room >= request or ask.fitted or not ask.reserves:
        return seen
    each = " of each GPU" if gpu and ask.devices > 1 else ""
    left = "are reserved for them" if ask.kv_bytes else "remain after the weights"
    problem = (
        f"one request of {load.length:,} tokens takes {in_gib(request)}{each}, "
        f"and {in_gib(room)} {left}"
    )
    return replace(seen, problem=problem, hint=_shorter(ask, shape, load.length, room, gpu=gpu))


def _too_heavy(seen: Fit, fixed: int | None, *, gpu: bool) -> str:
    kept = f", and {in_gib(fixed)} are reserved for requests" if fixed else ""
    if not gpu:
        weights = f"its weights take {in_gib(seen.weights)} of memory"
        return f"{weights}{kept}; the host has {in_gib(seen.memory)}"
    of = f" of {in_gib(seen.memory)}" if seen.budget != seen.memory else ""
    weights = f"its weights take {in_gib(seen.weights)} on each GPU"
    return f"{weights}{kept}; it may take {in_gib(seen.budget)}{of}"


def _lighter(
    ask: EngineSettings, shape: ModelShape, load: ReplicaMemory, budget: int, *, gpu: bool
) -> str:
    """Return what makes the part of the weights on one device small enough."""
    smaller = "use a smaller or quantized model"
    if not gpu or not load.weights:
        return smaller
    for tensor in range(ask.tensor + 1, 65):
        divides = not shape.heads or shape.heads % tensor == 0
        if divides and load.weights / tensor / ask.pipeline < budget:
            return f"set tensor_parallel_size = {tensor} under engine_args, or {smaller}"
    return smaller


def _shorter(ask: EngineSettings, shape: ModelShape, length: int, room: int, *, gpu: bool) -> str:
    """Return which length fits, and what makes room."""
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        small = (request_bytes(ask, shape, middle) or 0) <= room
        low, high = (middle, high) if small else (low, middle)
    fitting = min(low // ROUND * ROUND or low, shape.context or low)
    more = 'kv_cache_dtype = "fp8"' if gpu else ""
    if not gpu:
        needed = math.ceil((request_bytes(ask, shape, length) or 0) / GIB)
        more = f'VLLM_CPU_KVCACHE_SPACE = "{needed}" under [env]'
    if not fitting:
        return f"set {more}" if more else ""
    return f"set max_model_len = {fitting} under engine_args, or {more}"


def in_gib(size: float | None) -> str:
    """Return bytes as "23.5 GiB" or, below one, as "45.0 MiB"."""
    if size is None:
        return "?"
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"
