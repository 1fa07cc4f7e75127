"""What a model may say of its replicas, limits and adapters."""

from __future__ import annotations

import pytest

from raycluster.serve.settings import SHUT
from raycluster.services.app import app
from raycluster.spec import ClusterSpec, Model
from tests.unit.spec.conftest import Read, Refusal

MODEL = '[cluster]\nname = "q"\n[head]\nhost = "h"\n[[models]]\nname = "m"\n'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            'replicas = { policy = "a.b" }',
            "replicas.policy: a function such as `package.module:function` is expected, not 'a.b'",
        ),
        ("replicas = { to_zero_delay = -1 }", "replicas.to_zero_delay: 0 or more is expected"),
        ("max_queued_requests = 0", "max_queued_requests: 1 or more is expected, not 0"),
        (
            'adapters = { a = "/a" }\nengine = "transformers"',
            "adapters need vLLM: remove `engine`, or the adapters",
        ),
        (
            'fallback = true\nengine = "vllm"',
            '`fallback` is for engine = "auto": remove one of them',
        ),
        (
            "max_ongoing_requests = 64\nreplicas = { max = 2 }",
            "replicas.target_ongoing_requests (64) must be less than max_ongoing_requests (64)",
        ),
        ('aliases = ["m"]', "two models, aliases or adapters have the name 'm'"),
        ('aliases = ["a", "a"]', "two models, aliases or adapters have the name 'a'"),
        ('aliases = ["-a"]', "aliases"),
        ('adapters = { m = "/a" }', "two models, aliases or adapters have the name 'm'"),
        (
            "engine_args.enable_auto_tool_choice = true",
            "engine_args: `enable_auto_tool_choice` needs `tool_call_parser`, the name of vLLM's "
            'parser for the model\'s family, such as "hermes" for Qwen',
        ),
        (
            'engine_args.lora_modules = ["a=b"]',
            "engine_args: `lora_modules` cannot be set: set `adapters` of the model instead",
        ),
        (
            "num_gpus = 1\nengine_args.tensor_parallel_size = 2",
            "num_gpus is 1, but the engine arguments need 2: remove num_gpus",
        ),
        (
            "num_gpus = 2\nengine_args = { tensor_parallel_size = 2, data_parallel_size = 4 }",
            "num_gpus is 2, but the engine arguments need 8: remove num_gpus",
        ),
        (
            "engine_args = { data_parallel_size = 4, data_parallel_size_local = 2 }",
            "data_parallel_size_local is 2 of data_parallel_size 4: all engines of a replica run "
            "on one host; remove it, and use `replicas`",
        ),
        (
            "engine_args.data_parallel_size_local = 0",
            "data_parallel_size_local is 0 of data_parallel_size 1",
        ),
    ],
)
def test_what_is_refused(refusal: Refusal, lines: str, said: str) -> None:
    assert said in refusal(MODEL + lines)


@pytest.mark.parametrize("variable", SHUT)
@pytest.mark.parametrize(
    "where",
    [
        "[runtime]\nenv = {{ {} = '1' }}",
        "[[workers]]\nhost = 'w'\nruntime.env = {{ {} = '0' }}",
        "[env]\n{} = '1'",
        "[secrets]\n{} = 'env:A'",
    ],
)
def test_what_changes_a_replica_by_its_own_server_is_refused(
    refusal: Refusal, variable: str, where: str
) -> None:
    said = refusal(MODEL + where.format(variable))
    assert f"{variable} is not allowed here: {SHUT[variable]}" in said


def test_an_adapter_may_not_have_the_name_of_another_model(refusal: Refusal) -> None:
    more = '[[models]]\nname = "n"\nadapters = { m = "/a" }\n'
    assert "two models, aliases or adapters have the name 'm'" in refusal(MODEL + more)


def test_a_model_has_its_own_name_its_aliases_and_those_of_its_adapters(read: Read) -> None:
    told = 'aliases = ["gpt-4o"]\nadapters = { a = "/a", "org/b" = "org/b" }\n'
    (model,) = read(f"{MODEL}{told}").models
    assert model.names == ("m", "gpt-4o", "a", "org/b")


@pytest.mark.parametrize(("replicas", "least"), [("3", 3), ("{ min = 0, max = 2 }", 0)])
def test_the_smallest_number_of_replicas(read: Read, replicas: str, least: int) -> None:
    (model,) = read(f"{MODEL}replicas = {replicas}\n").models
    assert model.least_replicas == least


@pytest.mark.parametrize(
    ("more", "gpus", "engine"),
    [
        ({}, 1, "vllm"),
        ({}, 0.5, "vllm"),
        ({}, 0, "auto"),
        ({"fallback": True}, 1, "auto"),
        ({"engine": "vllm"}, 0, "vllm"),
        ({"engine": "transformers"}, 1, "transformers"),
    ],
)
def test_vllm_may_not_be_replaced_unasked_on_gpus(
    more: dict[str, object], gpus: float, engine: str
) -> None:
    assert Model.model_validate({"name": "m"} | more).engine_on(gpus) == engine


@pytest.mark.parametrize(("gpus", "engine"), [({"head": 1.0}, "vllm"), ({"head": 0.0}, "auto")])
def test_replicas_are_told_so(gpus: dict[str, float], engine: str) -> None:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": [{"name": "m"}]}
    )
    [told] = app(spec, gpus=gpus, fingerprint="f")["applications"]
    assert told["args"]["model"]["engine"] == engine


@pytest.mark.parametrize("local", ["", ", data_parallel_size_local = 4"])
def test_eight_gpus_of_four_engines_of_two_are_what_num_gpus_says(read: Read, local: str) -> None:
    sizes = f"{{ tensor_parallel_size = 2, data_parallel_size = 4{local} }}"
    (model,) = read(f"{MODEL}num_gpus = 8\nengine_args = {sizes}\n").models
    assert model.each_gpus == model.world_size == 8


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("replicas = 2", "prefix"),
        ('engine = "transformers"', "least-busy"),
        ("engine_args = { enable_prefix_caching = false }", "least-busy"),
        ('engine_args = { runner = "pooling" }', "least-busy"),
        ('routing = "least-busy"', "least-busy"),
        ('engine = "transformers"\nrouting = "prefix"', "prefix"),
    ],
)
def test_requests_go_by_their_prompt_where_a_cache_profits(
    read: Read, lines: str, rule: str
) -> None:
    assert read(MODEL + lines).models[0].routed == rule
