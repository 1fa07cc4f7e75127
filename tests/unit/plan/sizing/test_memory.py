"""Whether models fit, at the edges, and what to change where they do not."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.plan.sizing.memory import GIB, Fit, ask_of, fit, load_of, request_bytes
from raycluster.plan.sizing.shape import read_shape
from raycluster.spec import Model
from tests.unit.plan.sizing import published

A100 = 80 * GIB
SMALL = 24 * GIB


def fitted(
    config: dict[str, Any],
    memory: int | None,
    *,
    gpus: float = 1,
    stored: int | None = None,
    env: dict[str, str] | None = None,
    engine: str = "vllm",
    **args: Any,
) -> Fit:
    """Return how a model with these engine arguments fits."""
    model = Model.model_validate({"name": "m", "engine": engine, "engine_args": args})
    shape = read_shape(config)
    ask = ask_of(model, gpus=gpus and model.each_gpus * gpus, env=env or {})
    return fit(ask, shape, load_of(ask, shape, stored), memory, gpu=bool(gpus))


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (published.LLAMA_3_8B, 131_072),
        (published.QWEN25_05B, 12_288),
        (published.MIXTRAL_8X7B, 131_072),
        (published.DEEPSEEK_V3, 70_272),
    ],
    ids=["Llama-3-8B", "Qwen2.5-0.5B", "Mixtral-8x7B", "DeepSeek-V3"],
)
def test_bytes_of_a_token_in_the_cache(config: dict[str, Any], per_token: int) -> None:
    shape = read_shape(config)
    ask = ask_of(Model(name="m"), gpus=1, env={})
    assert load_of(ask, shape, None).per_token == per_token
    assert request_bytes(ask, shape, 1) == 16 * per_token, "a block has 16 tokens"


def test_a_fitting_model_says_how_many_requests_fit_beside_its_weights() -> None:
    seen = fitted(published.LLAMA_3_8B, A100, gpu_memory_utilization=0.9)
    assert seen.problem == ""
    assert seen.weights == pytest.approx(8_030_261_248 * 2, rel=0.001)
    assert seen.request == GIB  # 8192 tokens of 128 KiB
    assert seen.at_once == pytest.approx(72 - 8_030_261_248 * 2 / GIB, rel=0.001)


def test_without_a_share_a_replica_takes_eight_tenths_of_its_part_of_a_gpu() -> None:
    assert fitted(published.QWEN25_05B, A100).budget == int(A100 * 0.8)
    half = Model(name="m", num_gpus=0.5)
    assert ask_of(half, gpus=0.5, env={}).share == pytest.approx(0.4)


def test_a_length_that_does_not_fit_names_one_that_does() -> None:
    seen = fitted(published.LLAMA_31_8B, SMALL)
    assert seen.problem == (
        "one request of 131,072 tokens takes 16.0 GiB, and 4.2 GiB remain after the weights"
    )
    assert seen.hint == ('set max_model_len = 33792 under engine_args, or kv_cache_dtype = "fp8"')
    assert fitted(published.LLAMA_31_8B, SMALL, max_model_len=33792).problem == ""
    assert fitted(published.LLAMA_31_8B, SMALL, max_model_len=36864).problem != ""


def test_no_length_is_proposed_that_the_model_was_not_made_for() -> None:
    seen = fitted(published.QWEN25_05B, SMALL, gpus=0, max_model_len=200_000)
    assert "set max_model_len = 32768 under engine_args" in seen.hint


def test_weights_that_do_not_fit_name_the_number_of_gpus() -> None:
    seen = fitted(published.MIXTRAL_8X7B, SMALL)
    assert seen.problem == (
        "its weights take 87.0 GiB on each GPU; it may take 19.2 GiB of 24.0 GiB"
    )
    assert seen.hint == (
        "set tensor_parallel_size = 8 under engine_args, or use a smaller or quantized model"
    )
    assert fitted(published.MIXTRAL_8X7B, SMALL, tensor_parallel_size=8).problem == ""


def test_tensor_and_pipeline_parallel_split_weights_and_keys() -> None:
    whole = fitted(published.LLAMA_3_8B, A100)
    for axis in ("tensor_parallel_size", "pipeline_parallel_size"):
        split: dict[str, Any] = {axis: 4}
        part = fitted(published.LLAMA_3_8B, A100, **split)
        assert (part.weights, part.request) == (whole.weights // 4, whole.request // 4)  # type: ignore[operator]


def test_each_data_parallel_engine_has_all_weights_and_requests_of_its_own() -> None:
    alone = fitted(published.LLAMA_3_8B, A100, tensor_parallel_size=2)
    four = fitted(published.LLAMA_3_8B, A100, tensor_parallel_size=2, data_parallel_size=4)
    assert (four.weights, four.request) == (alone.weights, alone.request)
    assert alone.at_once
    assert four.at_once == pytest.approx(4 * alone.at_once)
    on_cpu = fitted(published.LLAMA_3_8B, A100, gpus=0, data_parallel_size=3)
    assert on_cpu.weights == pytest.approx(3 * 8_030_261_248 * 2, rel=0.001)


def test_the_context_of_prompts_splits_no_weights() -> None:
    alone = fitted(published.LLAMA_3_8B, A100, tensor_parallel_size=2)
    wide = fitted(
        published.LLAMA_3_8B, A100, tensor_parallel_size=2, prefill_context_parallel_size=2
    )
    assert wide == alone


def test_experts_that_data_parallel_engines_share_are_not_guessed() -> None:
    assert fitted(published.MIXTRAL_8X7B, SMALL, data_parallel_size=8).weights is None
    shape = read_shape(published.MIXTRAL_8X7B)
    ask = ask_of(Model(name="m", engine_args={"data_parallel_size": 8}), gpus=8, env={})
    assert load_of(ask, shape, None).doubts == ("data parallel engines share its experts",)


def test_heads_are_not_split_further_than_there_are() -> None:
    eight = fitted(published.LLAMA_3_8B, A100, tensor_parallel_size=8).request
    assert fitted(published.LLAMA_3_8B, A100, tensor_parallel_size=16).request == eight


def test_latent_attention_is_not_split_by_tensor_parallelism() -> None:
    seen = fitted(published.DEEPSEEK_V3, 2 * A100, tensor_parallel_size=8, max_model_len=1024)
    assert seen.request == 70_272 * 1024
    assert seen.weights == pytest.approx(671_026_419_200 / 8, rel=0.001)


def test_windows_bound_what_a_request_takes() -> None:
    shape = read_shape(published.GPT_OSS_20B)
    ask = ask_of(Model(name="m"), gpus=1, env={})
    long = request_bytes(ask, shape, 131072)
    assert long == 12 * (131072 + 4224 + 16) * 2 * 8 * 64 * 2, "2 x 2048 tokens are in flight"
    assert request_bytes(ask, shape, 1000) == 12 * (1008 + 1008 + 16) * 2 * 8 * 64 * 2


@pytest.mark.parametrize(
    ("args", "factor"),
    [({"kv_cache_dtype": "fp8"}, 0.5), ({"dtype": "float32"}, 2), ({"dtype": "float16"}, 1)],
)
def test_the_dtype_of_the_cache(args: dict[str, Any], factor: float) -> None:
    assert fitted(published.LLAMA_3_8B, A100, **args).request == GIB * factor


def test_the_size_on_disk_counts_before_the_config_and_float32_is_halved() -> None:
    assert fitted(published.LLAMA_3_8B, A100, stored=4 * GIB).weights == 4 * GIB
    single = {**published.LLAMA_3_8B, "torch_dtype": "float32"}
    assert fitted(single, A100, stored=4 * GIB).weights == 2 * GIB
    assert fitted(single, A100, stored=4 * GIB, dtype="float32").weights == 4 * GIB


@pytest.mark.parametrize("length", [-1, "auto"])
def test_an_engine_that_chooses_its_length_is_not_refused_for_it(length: object) -> None:
    assert fitted(published.LLAMA_31_8B, SMALL, max_model_len=length).problem == ""


@pytest.mark.parametrize(("length", "tokens"), [("4k", 4000), ("4K", 4096), ("2048", 2048)])
def test_lengths_are_read_as_vllm_reads_them(length: str, tokens: int) -> None:
    assert fitted(published.LLAMA_3_8B, A100, max_model_len=length).request == tokens * 131_072


def test_transformers_reserves_nothing_for_requests() -> None:
    assert fitted(published.LLAMA_31_8B, SMALL, engine="transformers").problem == ""
    assert "weights take" in fitted(published.MIXTRAL_8X7B, SMALL, engine="transformers").problem


def test_a_cpu_keeps_a_fixed_room_for_requests() -> None:
    seen = fitted(published.QWEN25_05B, SMALL, gpus=0, max_model_len=32768)
    assert (seen.room, seen.request) == (GIB, 32768 * 12_288)
    seen = fitted(published.LLAMA_3_8B, SMALL, gpus=0, max_model_len=16384)
    assert seen.problem == (
        "one request of 16,384 tokens takes 2.0 GiB, and 1.0 GiB are reserved for them"
    )
    assert seen.hint == (
        'set max_model_len = 8192 under engine_args, or VLLM_CPU_KVCACHE_SPACE = "2" under [env]'
    )
    more = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert not fitted(published.LLAMA_3_8B, SMALL, gpus=0, max_model_len=16384, env=more).problem
    assert fitted(published.LLAMA_3_8B, 16 * GIB, gpus=0, env=more).problem == (
        "its weights take 15.0 GiB of memory, and 2.0 GiB are reserved for requests; "
        "the host has 16.0 GiB"
    )


@pytest.mark.parametrize(
    "args",
    [
        {"quantization": "bitsandbytes"},
        {"hf_overrides": {"num_hidden_layers": 1}},
        {"load_format": "gguf"},
    ],
)
def test_what_changes_while_it_is_loaded_is_unknown(args: dict[str, Any]) -> None:
    seen = fitted(published.MIXTRAL_8X7B, SMALL, **args)
    assert (seen.weights, seen.problem) == (None, "")


def test_memory_that_is_not_known_is_no_problem() -> None:
    assert fitted(published.MIXTRAL_8X7B, None) == Fit()


def test_a_model_that_keeps_something_else_is_judged_by_its_weights_alone() -> None:
    strange = {**published.LLAMA_3_8B, "compress_ratios": [4]}
    seen = fitted(strange, SMALL, stored=10 * GIB)
    assert (seen.weights, seen.at_once, seen.problem) == (10 * GIB, None, "")
    assert "weights take" in fitted(strange, SMALL, stored=40 * GIB).problem


@pytest.mark.parametrize(
    "args", [{"decode_context_parallel_size": 2}, {"disable_sliding_window": True}]
)
def test_arguments_that_change_the_cache_leave_it_unknown(args: dict[str, Any]) -> None:
    seen = fitted(published.LLAMA_31_8B, SMALL, **args)
    assert (seen.request, seen.problem) == (None, "")


@pytest.mark.parametrize(("latent", "block"), [(False, 128), (True, 16)])
def test_a_cpu_has_larger_blocks(latent: bool, block: int) -> None:
    config = published.DEEPSEEK_V3 if latent else published.LLAMA_3_8B
    shape, ask = read_shape(config), ask_of(Model(name="m"), gpus=0, env={})
    per_token = load_of(ask, shape, None).per_token
    assert per_token
    assert request_bytes(ask, shape, 1) == block * per_token


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**18,
    1e308,
    "x",
    "",
    [],
    {},
    [[]],
    {"a": []},
    [None],
    "9" * 99,
)
CONFIGS = [value for value in vars(published).values() if isinstance(value, dict)]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_no_value_of_a_config_stops_a_forecast(config: dict[str, Any]) -> None:
    """It is a file of a host, or of the hub."""
    others = ("rope_scaling", "quantization_config", "layer_types", "text_config", "sliding_window")
    for key in (*config, *others):
        for strange in STRANGE:
            fitted({**config, key: strange}, A100)
            fitted({**config, key: {**config, key: strange}}, A100)


def test_a_config_of_other_kinds_stops_no_forecast() -> None:
    for strange in STRANGE:
        fitted(dict.fromkeys(published.LLAMA_3_8B, strange), A100)
