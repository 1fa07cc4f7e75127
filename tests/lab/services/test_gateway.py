"""The gateways and what stands beside Ray, on the cluster that Prometheus watches."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.lab.host import wait_for
from tests.lab.services.cluster import API_PORT, KEY, NAME, OTHER_KEY, URLS, Watched
from tests.lab.specs import MODEL

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def test_up_starts_ray_then_what_stands_beside_it(watched: Watched) -> None:
    assert watched.first == [
        ("start", "head"),
        ("start", "worker"),
        ("start", "gateway"),
        ("start", "prometheus"),
        ("start", "gateway"),
        ("deploy", None),
    ]
    assert watched.up() == []


def test_without_a_key_nothing_is_served(watched: Watched) -> None:
    with watched.client() as nobody, watched.client(OTHER_KEY) as stranger:
        for client in (nobody, stranger):
            answer = client.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert nobody.get("/health").status_code == 200


def test_with_a_key_the_model_answers(watched: Watched) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    with watched.client(KEY) as client:
        answer = client.post("/v1/completions", json=body)
        assert "Paris" in answer.json()["choices"][0]["text"]
        assert answer.headers["x-raycluster-engine"] == "vllm"


def test_only_the_api_is_reached_and_large_requests_are_refused(watched: Watched) -> None:
    with watched.client(KEY) as client:
        codes = {p: client.get(p).status_code for p in ("/metrics", "/tokenize", "/-/routes", "/")}
        assert set(codes.values()) == {404}
        large = {"model": MODEL, "prompt": "x" * 65536}
        assert client.post("/v1/completions", json=large).status_code == 413


def test_tokens_come_one_by_one(watched: Watched) -> None:
    tokens = 200
    body = {"model": MODEL, "prompt": "Count:", "max_tokens": tokens, "ignore_eos": True}
    with (
        watched.client(KEY) as client,
        client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer,
    ):
        arrivals = sum(1 for _ in answer.iter_raw())
    assert arrivals > tokens / 2  # a buffer of nginx's would hold a dozen of them or more


def test_status_tells_of_both(watched: Watched) -> None:
    done = watched.cli("status", watched.spec, "--json")
    assert done.returncode == 0, done.stdout
    status = json.loads(done.stdout)
    assert [node["services"] for node in status["nodes"]] == [
        [{"role": "gateway", "process": "running"}, {"role": "prometheus", "process": "running"}],
        [{"role": "gateway", "process": "running"}],
    ]
    gateway = f"https://{watched.head.address}:{API_PORT}/v1"
    assert status["endpoints"]["gateway"] == gateway


def test_status_takes_the_last_minute_from_prometheus(watched: Watched) -> None:
    now: dict[str, Any] = {}

    def recorded() -> bool:
        with watched.client(KEY) as client:
            client.post("/v1/completions", json={"model": MODEL, "prompt": "A", "max_tokens": 1})
        done = watched.cli("status", watched.spec, "--json")
        now.update(json.loads(done.stdout)["models"][0]["figures"]["rates"])
        figures = ("requests_per_second", "generated_tokens_per_second")
        return now["source"] == "prometheus" and all((now[name] or 0) > 0 for name in figures)

    wait_for(recorded, "figures of Prometheus", 90)
    assert (now["window_seconds"], now["errors_per_second"]) == (60.0, 0.0)


def test_the_tunnel_brings_the_gateway_and_prometheus_with_figures_of_ray(watched: Watched) -> None:
    assert set(watched.urls) == URLS
    with httpx.Client(timeout=30, trust_env=False, verify=watched.trust()) as client:
        assert client.get(f"{watched.urls['gateway']}/v1/models").status_code == 401
    for figure in (
        *('up{job="ray", node="head", role="head"} == 1', "ray_serve_deployment_replica_healthy"),
        "haproxy_frontend_http_requests_total",
    ):
        wait_for(lambda asked=figure: watched.query(asked), figure, 60)  # type: ignore[misc]


def test_keys_are_nowhere_but_in_the_gateways_file(watched: Watched) -> None:
    cli, host = watched.cli, watched.head
    said = [
        cli("plan", watched.spec, "--json").stdout,
        cli("status", watched.spec, "--json").stdout,
        cli("logs", "--spec", watched.spec, "gateway", "--tail", "1000").stdout,
        host.check("docker", "inspect", f"raycluster-{NAME}-gateway"),
        host.check("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
    ]
    for text in said:
        assert text
        assert KEY not in text
    assert '"owner":"alice"' in said[2]


def test_a_new_key_is_the_only_change_and_takes_effect(watched: Watched) -> None:
    containers = ("docker", "ps", "-q", "--no-trunc")
    before = watched.head.check(*containers)
    for former, present in ((KEY, OTHER_KEY), (OTHER_KEY, KEY)):
        assert watched.up(present) == [("reload", "gateway")] * 2
        assert watched.head.check(*containers) == before
        with watched.client(former) as refused, watched.client(present) as served:
            assert refused.get("/v1/models").status_code == 401
            assert served.get("/v1/models").status_code == 200


def test_a_lost_gateway_is_noticed_and_repaired(watched: Watched) -> None:
    watched.head.check("docker", "rm", "-f", f"raycluster-{NAME}-gateway")
    done = watched.cli("status", watched.spec, "--json")
    assert done.returncode == 3
    [problem] = json.loads(done.stdout)["problems"]
    assert (problem["where"], problem["what"]) == ("head", "has no gateway")
    assert watched.up() == [("start", "gateway")]
    both = {"head": "up", "docker-2": "up"}  # what Prometheus asked meanwhile had no answer
    wait_for(lambda: watched.targets("gateway") == both, "the gateway's figures", 60)
