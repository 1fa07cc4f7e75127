"""What vLLM itself says of configs: a program for an environment with vLLM.

    python vllm_sizes.py configs.json

prints JSON: for each config the tokens of a request at most, the bytes that vLLM asks for before it
starts (keys and values of one such request), and those of the weights. Each model is built by
vLLM's own class without memory (torch's meta device), its layers choose their cache's kind, and
vLLM groups them. Of a GPU that this machine lacks is told what matters: blocks of any multiple of
16 tokens (`v1/attention/backends/flash_attn.py`, `get_supported_kernel_block_sizes`), steps of 8192
tokens (`engine/arg_utils.py`, `get_batch_defaults`), of which two are in flight (`config/vllm.py`,
`max_concurrent_batches`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

import torch  # type: ignore[import-not-found,unused-ignore]
from vllm.config import VllmConfig, get_layers_from_vllm_config, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.distributed.parallel_state import destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.core import kv_cache_utils

BLOCK, BATCH, LAYOUT = 16, 8192, "LBNHC"
LANGUAGE = {
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "llama4": ("Llama4ForCausalLM", "llama4_text"),
    "qwen2_5_vl": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3_vl": ("Qwen3ForCausalLM", "qwen3"),
}
"""The class of the language part, whose layers are those of the whole: images want torchvision."""


def language_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of the language part alone."""
    if config["model_type"] not in LANGUAGE:
        return config
    architecture, kind = LANGUAGE[config["model_type"]]
    part = {**config, **config.get("text_config", {})}
    if "qwen" in kind:
        del part["rope_scaling"]  # that of images
    part |= {"architectures": [architecture], "model_type": kind}
    return {k: v for k, v in part.items() if k not in ("text_config", "vision_config")}


def built(config: dict[str, Any]) -> tuple[VllmConfig, Any]:
    """Return vLLM's settings and its model, which has no memory."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        args = EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            block_size=BLOCK,
            max_num_batched_tokens=BATCH,
        )
        settings = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        settings.scheduler_config.async_scheduling = True  # as on a GPU
        with set_current_vllm_config(settings):
            destroy_model_parallel()
            initialize_model_parallel(1, 1)
            with set_default_torch_dtype(settings.model_config.dtype), torch.device("meta"):
                return settings, initialize_model(settings)


def built_somehow(config: dict[str, Any]) -> tuple[VllmConfig, Any, bool]:
    """Return the same and whether with the config's own weights: a CPU has no code for some."""
    try:
        return *built(config), True
    except (ValueError, NotImplementedError):
        if "quantization_config" not in config:
            raise
        plain = {k: v for k, v in config.items() if k != "quantization_config"}
        return *built(plain), False


def asked(settings: VllmConfig) -> int:
    """Return the bytes for one request of full length."""
    current_platform.update_block_size_for_backend(settings)
    layers = get_layers_from_vllm_config(settings, AttentionLayerBase)
    specs = {
        name: spec
        for name, layer in layers.items()
        if not (isinstance(layer, Attention) and layer.kv_sharing_target_layer_name)
        and (spec := layer.get_kv_cache_spec(settings))
    }
    settings.cache_config.kv_cache_layout = LAYOUT
    groups = kv_cache_utils.get_kv_cache_groups(settings, specs)
    return int(kv_cache_utils._max_memory_usage_bytes_from_groups(settings, groups))


def sizes(config: dict[str, Any]) -> dict[str, int | None]:
    """Return what vLLM says of one config."""
    settings, model, own = built_somehow(language_part(config))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "context": settings.model_config.max_model_len,
        "request": asked(settings),
        "weights": weights if own and config["model_type"] not in LANGUAGE else None,
    }


def main() -> None:
    """Print what vLLM says of all configs of a file."""
    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(
        lambda kv_cache_spec=None: [MultipleOf(BLOCK)]
    )
    registry._run_in_subprocess = lambda inspect: inspect()  # a process each takes 5 s
    configs = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        with set_current_vllm_config(VllmConfig()):
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        found = {name: sizes(config) for name, config in configs.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
