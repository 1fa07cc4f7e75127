from __future__ import annotations

import json
from typing import Any

import pytest

from raycluster.plan.rollout import same
from raycluster.serve.environment import Environment
from raycluster.serve.settings import (
    Autoscale,
    ModelSettings,
    applications,
    haproxy_of,
    slugs,
)

SMALL = ModelSettings(name="smol", source="/models/smol")
BIG = ModelSettings(
    name="Qwen/Qwen2.5-0.5B-Instruct",
    source="Qwen/Qwen2.5-0.5B-Instruct",
    engine="vllm",
    engine_args={"max_num_seqs": 64, "compilation_config": {"mode": 0}},
    replicas=Autoscale(1, 4, 32.0, policy="a.b:c"),
    adapters={"tuned": "/models/tuned"},
    aliases=("gpt-4o",),
    max_queued_requests=7,
    num_cpus=2,
    num_gpus=1,
    env={"NCCL_SOCKET_IFNAME": "eth0"},
    secrets_path="$SECRETS/app.json",
    max_ongoing_requests=64,
)


def body(*models: ModelSettings, port: int = 8000, host: str = "127.0.0.1") -> dict[str, Any]:
    return applications(models, code_path="/code/abc", fingerprint="abc", port=port, host=host)


@pytest.mark.parametrize("settings", [SMALL, BIG])
def test_settings_survive_json(settings: ModelSettings) -> None:
    assert ModelSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


OWN = ModelSettings(
    name="own",
    source="/models/own",
    aliases=("other",),
    hosts={"gpu-1": "10.0.0.1"},
    environment=Environment(requirements=("vllm==0.31.0",), uv_args=("--torch-backend", "cpu")),
)


def test_what_serve_is_told_is_what_it_tells_again() -> None:
    """Else each `up` would find that something has changed, and start replicas anew."""
    for models in ([SMALL], [BIG], [OWN], [SMALL, BIG, OWN]):
        made = body(*models)
        [*seen] = json.loads(json.dumps(made))["applications"]
        assert all(same(*pair) for pair in zip(seen, made["applications"], strict=True))


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        ModelSettings.from_json({"name": "a", "source": "a", "colour": "red"})


def test_one_model_has_the_root_route_and_no_router() -> None:
    made = body(SMALL)
    (app,) = made["applications"]
    assert app["route_prefix"] == "/"
    assert app["runtime_env"] == {"env_vars": {"PYTHONPATH": "/code/abc"}}
    assert app["args"]["fingerprint"] == "abc"
    assert made["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert made["proxy_location"] == "EveryNode"


def test_several_models_have_a_router_that_knows_their_routes() -> None:
    apps = {app["name"]: app for app in body(SMALL, BIG, port=9000)["applications"]}
    assert apps["smol"]["route_prefix"] == "/m/smol"
    router = apps["router"]
    assert router["route_prefix"] == "/"
    assert router["args"]["upstream"] == "http://127.0.0.1:9000"
    big = apps["qwen-qwen2.5-0.5b-instruct"]["route_prefix"]
    assert router["args"]["routes"] == {
        "smol": "/m/smol",
        **dict.fromkeys((BIG.name, "gpt-4o", "tuned"), big),
    }
    assert router["args"]["adapters"] == {"gpt-4o": BIG.name, "tuned": BIG.name}
    assert router["args"]["asleep"] == []


def test_how_applications_are_balanced() -> None:
    sticky = ModelSettings("sticky/one", "s", routing="sticky")
    assert haproxy_of(body(SMALL, sticky))["routing"] == {
        "smol": "least-busy",
        "sticky-one": "sticky",
    }


def test_the_router_knows_who_may_sleep() -> None:
    sleepy = ModelSettings("sleepy", "s", replicas=Autoscale(0, 1))
    apps = {app["name"]: app for app in body(SMALL, sleepy)["applications"]}
    assert apps["router"]["args"]["asleep"] == ["sleepy"]


def test_counts_are_outside_of_what_restarts_replicas_and_limits_within() -> None:
    def app(replicas: int | Autoscale, ongoing: int) -> dict[str, Any]:
        settings = ModelSettings("a", "a", replicas=replicas, max_ongoing_requests=ongoing)
        (made,) = body(settings)["applications"]
        assert isinstance(made, dict)
        return made

    one, many = app(1, 8), app(Autoscale(1, 4), 8)
    assert one["args"] == many["args"] != app(1, 16)["args"]
    (fixed,), (scaled,) = one["deployments"], many["deployments"]
    assert fixed["num_replicas"] == 1
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"]["max_replicas"] == 4


def deployment(model: ModelSettings) -> dict[str, Any]:
    (app,) = body(model)["applications"]
    (made,) = app["deployments"]
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize(("told", "queued"), [(None, 256), (7, 7)])
def test_the_queue_is_bounded(told: int | None, queued: int) -> None:
    made = deployment(ModelSettings("a", "a", max_ongoing_requests=64, max_queued_requests=told))
    assert made["max_ongoing_requests"] == 64
    assert made["max_queued_requests"] == queued
    assert made["backpressure_config"]["status_code"] == 429


def test_what_serve_is_told_of_autoscaling() -> None:
    assert deployment(BIG)["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 32.0,
        "upscale_delay_s": 10.0,
        "downscale_delay_s": 300.0,
        "downscale_to_zero_delay_s": 900.0,
        "policy": {"policy_function": "a.b:c"},
    }


def test_a_model_that_may_sleep_starts_awake() -> None:
    config = deployment(ModelSettings("a", "a", replicas=Autoscale(0, 2)))["autoscaling_config"]
    assert (config["min_replicas"], config["initial_replicas"]) == (0, 1)
    assert "policy" not in config


@pytest.mark.parametrize(
    ("cpus", "gpus", "first", "other"),
    [
        (2, 6, {"CPU": 2.0, "GPU": 2.0}, {"GPU": 2.0}),
        (0, 3, {"GPU": 1.0}, {"GPU": 1.0}),
        (1, 0, {"CPU": 1.0}, {"CPU": 1.0}),
    ],
)
def test_a_replica_over_several_hosts_has_a_bundle_for_each_part(
    cpus: float, gpus: float, first: dict[str, float], other: dict[str, float]
) -> None:
    made = deployment(ModelSettings("a", "a", num_cpus=cpus, num_gpus=gpus, spread=3))
    assert made["placement_group_bundles"] == [first, other, other]
    assert made["ray_actor_options"] == {"num_cpus": float(cpus), "num_gpus": gpus / 3}


def test_a_replica_has_all_its_gpus_itself() -> None:
    made = deployment(ModelSettings("a", "a", num_gpus=4))
    assert made["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 4.0}
    assert "placement_group_bundles" not in made


def test_code_that_is_on_the_nodes_path_needs_no_environment() -> None:
    (app,) = applications([SMALL], fingerprint="")["applications"]
    assert app["runtime_env"] == {}


def test_slugs_are_distinct_and_stable() -> None:
    names = ["a/b", "A b", "router", "日本", "ok"]
    made = slugs(names)
    assert len(set(made.values())) == len(names)
    assert made["ok"] == "ok"
    assert "router" not in made.values()
    assert made == slugs(names)
    assert all(
        slug and set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        for slug in made.values()
    )


@pytest.mark.parametrize(
    ("host", "upstream"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_router_calls_an_address_that_can_be_called(host: str, upstream: str) -> None:
    apps = {app["name"]: app for app in body(SMALL, BIG, host=host)["applications"]}
    assert apps["router"]["args"]["upstream"] == upstream


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ([{}, {}], ["*"]),
        ([{"allowed_origins": ["https://a", "https://b"]}, {}], ["https://a", "https://b"]),
        ([{"allowed-origins": ["https://a"]}, {"allowed_origins": ["https://b"]}], []),
        ([{"allowed_origins": ["*"]}, {"allowed_origins": []}], []),
        ([{"allowed_origins": "https://a"}, {}], ["*"]),
    ],
)
def test_pages_that_read_all_models_read_the_router(
    given: list[dict[str, Any]], origins: list[str]
) -> None:
    models = [ModelSettings(f"m{n}", "m", engine_args=args) for n, args in enumerate(given)]
    apps = {app["name"]: app for app in body(*models)["applications"]}
    assert apps["router"]["args"]["origins"] == origins
