"""Ours agrees with what vLLM says of published configs, as `vllm.json` has it.

`tests/node/test_vllm_sizes.py` shows that vLLM still says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycluster.plan.sizing.memory import (
    GIB,
    EngineSettings,
    ask_of,
    batch_on,
    load_of,
    request_bytes,
)
from raycluster.plan.sizing.shape import read_shape
from raycluster.spec import Model

HERE = Path(__file__).parent
CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (HERE.parents[3] / "src/raycluster/recipes/configs.json").read_text()
)
VLLM: dict[str, dict[str, Any]] = json.loads((HERE / "vllm.json").read_text())
STATES = {
    "Qwen3-Next-80B-A3B": 0.97,
    "Jamba-1.5-Mini": 0.99,
    "Granite-4.0-H-Tiny": 0.85,
    "Nemotron-H-8B": 0.3,
    "Falcon-H1-7B": 0.95,
    "LFM2-1.2B": 0.99,
}
"""Models with states, which are not counted: what of vLLM's figure the rest is at least."""
UNKNOWN = {"Falcon-Mamba-7B": "its config has state_size"}
H100 = 80 * GIB


def asked(**args: Any) -> EngineSettings:
    model = Model.model_validate({"name": "m", "engine_args": args})
    return ask_of(model, gpus=model.each_gpus, env={}, batch=batch_on(H100, "NVIDIA H100"))


def test_what_is_recorded_is_of_these_configs() -> None:
    assert CONFIGS.keys() == VLLM.keys()
    assert len(CONFIGS) >= 25
    assert len(WEIGHED) >= 20


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - STATES.keys() - UNKNOWN.keys()))
def test_a_request_takes_what_vllm_asks_for(name: str) -> None:
    shape = read_shape(CONFIGS[name])
    assert request_bytes(asked(), shape, VLLM[name]["context"]) == VLLM[name]["request"]
    assert shape.context in (VLLM[name]["context"], None)


@pytest.mark.parametrize("name", STATES)
def test_beside_states_a_request_takes_less_than_vllm_asks_for(name: str) -> None:
    shape = read_shape(CONFIGS[name])
    ours = request_bytes(asked(), shape, VLLM[name]["context"])
    assert shape.stateful
    assert ours is not None
    assert STATES[name] * VLLM[name]["request"] < ours <= VLLM[name]["request"]


@pytest.mark.parametrize(("name", "doubt"), UNKNOWN.items())
def test_what_is_not_understood_has_no_figure(name: str, doubt: str) -> None:
    shape = read_shape(CONFIGS[name])
    assert request_bytes(asked(), shape, 1024) is None
    assert doubt in shape.doubts


WEIGHED = sorted(
    name for name, said in VLLM.items() if said["weights"] and read_shape(CONFIGS[name]).parameters
)
"""Models whose number of weights follows from the config; others are left to their files."""


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_never_more_than_vllms(name: str) -> None:
    shape = read_shape(CONFIGS[name])
    ours = load_of(asked(), shape, None).weights
    assert ours is not None
    least = 0.65 if shape.quantized or "gemma2" in CONFIGS[name]["model_type"] else 0.995
    assert least * VLLM[name]["weights"] < ours <= VLLM[name]["weights"]


def test_a_step_of_more_tokens_is_kept_beside_a_window() -> None:
    shape = read_shape(CONFIGS["Mistral-7B-v0.1"])
    per_block = 32 * 16 * 2 * 8 * 128 * 2
    in_flight = {"max_num_batched_tokens": 2048}
    assert request_bytes(asked(**in_flight), shape, 32768) == (512 + 1) * per_block
    for reason in ({"async_scheduling": False}, {"speculative_config": {"method": "ngram"}}):
        one = asked(**in_flight, **reason)
        assert request_bytes(one, shape, 32768) == (384 + 1) * per_block
    assert request_bytes(asked(), shape, 1000) == (63 + 1) * per_block


def test_without_the_hybrid_manager_windows_keep_all_tokens() -> None:
    shape = read_shape(CONFIGS["Gemma-2-9b"])
    ask = asked(disable_hybrid_kv_cache_manager=True)
    assert request_bytes(ask, shape, 8192) == 42 * 8192 * 2 * 8 * 256 * 2
    alone = read_shape(CONFIGS["Mistral-7B-v0.1"])
    assert request_bytes(ask, alone, 32768) == VLLM["Mistral-7B-v0.1"]["request"]


@pytest.mark.parametrize(
    ("memory", "name", "batch"),
    [
        (80 * GIB, "NVIDIA H100 80GB HBM3", 8192),
        (80 * GIB, "NVIDIA A100-SXM4-80GB", 2048),
        (180 * GIB, "NVIDIA B200", 16384),
        (24 * GIB, "NVIDIA L4", 2048),
        (None, "NVIDIA GB10", 2048),
    ],
)
def test_the_tokens_of_a_step_follow_from_the_gpu(
    memory: int | None, name: str, batch: int
) -> None:
    assert batch_on(memory, name) == batch
