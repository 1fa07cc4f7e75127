"""Golden cases: wanted applications and those that run -> what is planned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from raycluster.plan.planner import plan_app
from raycluster.report.outcome import plan_text
from raycluster.services.app import app
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App

ONE = [{"name": "Qwen/Qwen2.5-0.5B-Instruct", "engine_args": {"max_model_len": 1024}}]


def wanted(models: list[dict[str, Any]], fingerprint: str = "f" * 12) -> dict[str, Any]:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": models}
    )
    return app(spec, gpus={}, fingerprint=fingerprint)


def deployed(body: Mapping[str, Any], status: str = "RUNNING") -> tuple[App, ...]:
    """What Serve shows of `body`: its own defaults added."""
    apps = copy.deepcopy(body["applications"])
    return tuple(App(a["name"], status, config={**a, "external_scaler": False}) for a in apps)


def reasons(body: dict[str, Any], apps: tuple[App, ...] | None) -> list[str]:
    change = plan_app(body, apps)
    return list(change.reasons) if change else []


NAME = "qwen-qwen2.5-0.5b-instruct"


def test_nothing_deployed() -> None:
    assert reasons(wanted(ONE), None) == [f"{NAME}: not deployed"]


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


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 2},
        {"engine_args": {"max_model_len": 2048}},
        {"environment": {"vllm": "0.33.0"}},
        {"hosts": ["head"]},
    ],
)
def test_a_roll_back_is_the_old_spec(change: dict[str, Any]) -> None:
    old, new = wanted(ONE), wanted([{**ONE[0], **change}])
    back = plan_app(old, deployed(new))
    assert back
    assert back.reasons == (f"{NAME}: changed",)
    assert reasons(old, deployed(back.rollout.steps[-1])) == []
    assert reasons(new, deployed(back.rollout.steps[-1])) == [f"{NAME}: changed"]


def test_changed_code_or_secrets_are_deployed() -> None:
    assert reasons(wanted(ONE, "0" * 12), deployed(wanted(ONE))) == [f"{NAME}: changed"]


def test_a_failed_deployment_is_tried_again() -> None:
    body = wanted(ONE)
    assert reasons(body, deployed(body, "DEPLOY_FAILED")) == [f"{NAME}: deploy failed"]


def test_a_second_model_brings_a_router_and_moves_the_first() -> None:
    found = reasons(wanted([*ONE, {"name": "b"}]), deployed(wanted(ONE)))
    assert found == [f"{NAME}: changed", "b: not deployed", "router: not deployed"]


def test_a_model_that_left_the_spec_is_removed() -> None:
    found = reasons(wanted(ONE), deployed(wanted([*ONE, {"name": "b"}])))
    assert found == [f"{NAME}: changed", "b: not in the spec", "router: not in the spec"]


def test_gpus_follow_from_the_engine_arguments() -> None:
    model = {**ONE[0], "engine_args": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": [model]}
    )
    [with_gpus] = app(spec, gpus={"head": 4}, fingerprint="")["applications"]
    [without] = app(spec, gpus={}, fingerprint="")["applications"]
    assert with_gpus["deployments"][0]["ray_actor_options"]["num_gpus"] == 4
    assert without["deployments"][0]["ray_actor_options"]["num_gpus"] == 0


@pytest.mark.parametrize(
    ("sizes", "gpus", "num_gpus", "bundles"),
    [
        ({"tensor": 2, "data": 4}, {"head": 8}, 8, 0),
        ({"tensor": 2, "prefill_context": 2}, {"head": 4}, 4, 0),
        ({"tensor": 2, "pipeline": 2}, {"head": 2, "b": 2}, 2, 2),
        ({"tensor": 2}, {"head": 1, "b": 1}, 1, 2),
    ],
)
def test_a_replica_is_placed_by_all_its_sizes(
    sizes: dict[str, int], gpus: dict[str, float], num_gpus: float, bundles: int
) -> None:
    args = {f"{name}_parallel_size": size for name, size in sizes.items()}
    tables = {"cluster": {"name": "q"}, "head": {"host": "h"}}
    spec = ClusterSpec.model_validate({**tables, "models": [{**ONE[0], "engine_args": args}]})
    [made] = app(spec, gpus=gpus, fingerprint="")["applications"]
    [deployment] = made["deployments"]
    assert deployment["ray_actor_options"]["num_gpus"] == num_gpus
    placed = deployment.get("placement_group_bundles", [])
    assert [bundle["GPU"] for bundle in placed] == [num_gpus] * bundles


def test_a_version_that_failed_is_tried_again_as_another_one() -> None:
    """Serve never starts a version again that did not start."""
    body = wanted(ONE)
    change = plan_app(body, deployed(body, "DEPLOY_FAILED"))
    assert change
    assert change.body["applications"][0]["args"]["attempt"] == 1
    again = plan_app(body, deployed(change.body, "DEPLOY_FAILED"))
    assert again
    assert again.body["applications"][0]["args"]["attempt"] == 2
    assert reasons(body, deployed(again.body)) == []


def test_a_failed_version_with_another_count_is_tried_again() -> None:
    more = wanted([{**ONE[0], "replicas": 2}])
    change = plan_app(more, deployed(wanted(ONE), "DEPLOY_FAILED"))
    assert change
    assert change.body["applications"][0]["args"]["attempt"] == 1


def test_another_version_begins_with_the_first_attempt() -> None:
    body = wanted(ONE)
    failed = plan_app(body, deployed(body, "DEPLOY_FAILED"))
    assert failed
    other = plan_app(wanted([{**ONE[0], "num_cpus": 2}]), deployed(failed.body))
    assert other
    assert "attempt" not in other.body["applications"][0]["args"]


def test_how_it_was_rolled_out_is_no_difference() -> None:
    body = wanted(ONE)
    [app_] = deployed(body)
    app_.config["deployments"][0]["max_surge_percent"] = 1
    assert reasons(body, (app_,)) == []


def test_an_action_tells_what_it_costs() -> None:
    change = plan_app(wanted([{**ONE[0], "replicas": 2}]), deployed(wanted(ONE)))
    assert change
    assert plan_text([change]).splitlines() == [
        f"app: ~ deploy ({NAME}: changed)",
        f"    {NAME}: changes in place: no interruption",
        "1 change",
    ]
