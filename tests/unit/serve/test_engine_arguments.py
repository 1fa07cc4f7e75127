from __future__ import annotations

from collections.abc import Mapping

import pytest

from raycluster.serve.engines import EngineError, vllm
from raycluster.serve.engines import transformers as fallback
from raycluster.serve.settings import EngineChoice, ModelSettings


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (8192, ["--max-model-len=8192"]),
        (True, ["--max-model-len"]),
        (False, ["--no-max-model-len"]),
        (None, []),
        ("-1", ["--max-model-len=-1"]),
        ({"a": 1}, ['--max-model-len={"a": 1}']),
        (["a", {"b": 2}], ["--max-model-len", "a", '{"b": 2}']),
    ],
)
def test_words_of_vllm_s_command_line(value: object, words: list[str]) -> None:
    options = ["--max-model-len", "--no-max-model-len"]
    assert vllm.flags("max_model_len", value, options) == words


def test_false_without_a_negated_option_is_the_default() -> None:
    assert vllm.flags("headless", False, ["--headless"]) == []


def test_an_unknown_name_gets_a_suggestion() -> None:
    known = ["max_model_len", "dtype"]
    assert vllm.unknown("max-modle-len", known).endswith("did you mean 'max_model_len'?")
    assert vllm.unknown("zzz", known).endswith("'zzz'")


@pytest.mark.parametrize(
    ("given", "single"),
    [
        ({}, "0"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, "0"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "0-7"}, None),
    ],
)
def test_a_worker_of_its_own_is_kept_to_bind_threads(
    given: Mapping[str, str], single: str | None
) -> None:
    assert vllm.defaults(given, cpu=True).get("VLLM_ENABLE_V1_MULTIPROCESSING") == single


def test_gpus_get_no_defaults_for_cpus() -> None:
    assert not any("CPU" in name for name in vllm.defaults({}, cpu=False))


def test_our_arguments_follow_from_the_settings_and_the_spec_s_own_go_first() -> None:
    assert vllm.arguments(ModelSettings("a", "a", engine_args={"dtype": "auto"}), cpu=True) == {
        "allowed_media_domains": [vllm.NO_DOMAIN],
        "dtype": "auto",
    }
    given = vllm.arguments(
        ModelSettings(
            *("a", "a"),
            adapters={"b": "/b", "c": "/c"},
            engine_args={"max_loras": 1},
            spread=2,
        ),
        cpu=True,
    )
    assert given == {
        "allowed_media_domains": [vllm.NO_DOMAIN],
        "enable_lora": True,
        "max_loras": 1,
        "distributed_executor_backend": "ray",
        "worker_extension_cls": "raycluster.serve.engines.vllm_worker.AtTheNodesAddress",
    }


@pytest.mark.parametrize(
    ("given", "num_gpus", "cpu", "share"),
    [
        ({}, 1, False, 0.8),
        ({}, 4, False, 0.8),
        ({}, 0.5, False, 0.4),
        ({"gpu_memory_utilization": 0.95}, 1, False, 0.95),
        ({"gpu-memory-utilization": 0.95}, 1, False, 0.95),
        ({"gpu_memory_utilization": None}, 1, False, None),
        ({}, 0, True, None),
    ],
)
def test_a_replica_leaves_a_fifth_of_its_gpus_memory(
    given: Mapping[str, object], num_gpus: float, cpu: bool, share: float | None
) -> None:
    told = ModelSettings("a", "a", engine_args=given, num_gpus=num_gpus)
    assert vllm.arguments(told, cpu=cpu).get("gpu_memory_utilization") == share


def settings(engine: EngineChoice, **engine_args: object) -> ModelSettings:
    return ModelSettings(name="a", source="a", engine=engine, engine_args=engine_args)


def test_the_fallback_follows_what_it_understands() -> None:
    given = settings("auto", max_model_len=512, gpu_memory_utilization=0.8)
    assert fallback.understood(given) == {"max_model_len": 512}


def test_transformers_asked_for_by_name_refuses_what_it_does_not_understand() -> None:
    with pytest.raises(EngineError, match="did you mean 'max_model_len'"):
        fallback.understood(settings("transformers", max_model_length=512))
