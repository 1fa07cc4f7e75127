"""Golden cases: wanted applications and those that run -> what is planned."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from raycluster.plan import plan_app
from raycluster.services.app import app
from raycluster.spec import ClusterSpec
from raycluster.state import App

ONE = [{"name": "Qwen/Qwen2.5-0.5B-Instruct", "engine_args": {"max_model_len": 1024}}]


def wanted(models: list[dict[str, Any]], fingerprint: str = "f" * 12) -> dict[str, Any]:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": models}
    )
    return app(spec, gpus=False, fingerprint=fingerprint)


def deployed(body: dict[str, Any], status: str = "RUNNING") -> tuple[App, ...]:
    """What Serve shows of `body`: its own defaults added."""
    apps = copy.deepcopy(body["applications"])
    return tuple(App(a["name"], status, config={**a, "external_scaler": False}) for a in apps)


def reasons(body: dict[str, Any], apps: tuple[App, ...] | None) -> list[str]:
    change = plan_app(body, apps)
    return list(change.reasons) if change else []


NAME = "qwen-qwen2.5-0.5b-instruct"


def test_nothing_deployed() -> None:
    assert reasons(wanted(ONE), None) == [f"{NAME}: not there"]


def test_deployed_as_wanted() -> None:
    body = wanted(ONE)
    assert reasons(body, deployed(body)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 2},
        {"replicas": {"min": 1, "max": 3}},
        {"engine": "transformers"},
        {"engine_args": {"max_model_len": 2048}},
        {"engine_args": {}},
        {"max_ongoing_requests": 8},
        {"num_cpus": 2},
    ],
)
def test_a_changed_model_is_deployed(change: dict[str, Any]) -> None:
    assert reasons(wanted([{**ONE[0], **change}]), deployed(wanted(ONE))) == [f"{NAME}: changed"]


def test_changed_code_or_secrets_are_deployed() -> None:
    assert reasons(wanted(ONE, "0" * 12), deployed(wanted(ONE))) == [f"{NAME}: changed"]


def test_a_failed_deployment_is_tried_again() -> None:
    body = wanted(ONE)
    assert reasons(body, deployed(body, "DEPLOY_FAILED")) == [f"{NAME}: deploy failed"]


def test_a_second_model_brings_a_router_and_moves_the_first() -> None:
    found = reasons(wanted([*ONE, {"name": "b"}]), deployed(wanted(ONE)))
    assert found == [f"{NAME}: changed", "b: not there", "router: not there"]


def test_a_model_that_left_the_spec_is_removed() -> None:
    found = reasons(wanted(ONE), deployed(wanted([*ONE, {"name": "b"}])))
    assert found == [f"{NAME}: changed", "b: not in the spec", "router: not in the spec"]


def test_gpus_follow_from_the_engine_arguments() -> None:
    model = {**ONE[0], "engine_args": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": [model]}
    )
    [with_gpus] = app(spec, gpus=True, fingerprint="")["applications"]
    [without] = app(spec, gpus=False, fingerprint="")["applications"]
    assert with_gpus["deployments"][0]["ray_actor_options"]["num_gpus"] == 4
    assert without["deployments"][0]["ray_actor_options"]["num_gpus"] == 0
