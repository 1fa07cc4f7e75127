"""The gateway and Prometheus beside a real model: one cluster, test after test."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lab.conftest import make_cli
from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import MODEL, cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

FIRST, SECOND = "sk-lab-0123456789abcdef", "sk-lab-fedcba9876543210"
SERVICES = f"""
[gateway]
image = "{IMAGE}"
api_keys = {{ alice = "env:ALICE_KEY" }}
max_body = "64k"

[monitoring]
image = "{IMAGE}"
"""


@dataclass
class Served:
    """The cluster that the tests of this module share."""

    host: Host
    spec: Path
    home: Path
    lab: Lab
    clis: dict[str, Cli] = field(default_factory=dict)

    def cli(self, key: str = FIRST) -> Cli:
        """Return the program of somebody whose variable holds this key."""
        if key not in self.clis:
            self.clis[key] = make_cli(self.lab, self.home / key, {"ALICE_KEY": key})
        return self.clis[key]

    def up(self, key: str = FIRST) -> list[dict[str, Any]]:
        """Run `up` to its end and return what it changed."""
        done = self.cli(key)("up", self.spec, "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["changes"])

    def client(self, key: str = "") -> httpx.Client:
        """Return a client of the gateway at the host's own address."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=f"http://{self.host.address}:8080",
            headers=headers,
            timeout=60,
            trust_env=False,
        )


@pytest.fixture(scope="module")
def served(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A cluster on one host, which is taken down in any case."""
    folder = tmp_path_factory.mktemp("gateway")
    host = lab.docker_hosts[0]
    spec = folder / "cluster.toml"
    spec.write_text(cluster_toml(lab, [host], name="gate", extra=SERVICES))
    running = Served(host, spec, folder, lab)
    yield running
    running.cli()("down", spec, "--yes")


def test_up_starts_ray_then_what_stands_beside_it(served: Served) -> None:
    changes = [(c["action"], c.get("role")) for c in served.up()]
    assert changes == [
        ("start", "head"),
        ("start", "gateway"),
        ("start", "prometheus"),
        ("deploy", None),
    ]
    assert served.up() == []


def test_without_a_key_nothing_is_served(served: Served) -> None:
    with served.client() as nobody, served.client(SECOND) as stranger:
        for client in (nobody, stranger):
            answer = client.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert nobody.get("/health").status_code == 200


def test_with_a_key_the_model_answers(served: Served) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    with served.client(FIRST) as client:
        answer = client.post("/v1/completions", json=body)
        assert "Paris" in answer.json()["choices"][0]["text"]
        assert answer.headers["x-raycluster-engine"] == "vllm"


def test_only_the_api_is_reached_and_large_requests_are_refused(served: Served) -> None:
    with served.client(FIRST) as client:
        codes = {p: client.get(p).status_code for p in ("/metrics", "/tokenize", "/-/routes", "/")}
        assert set(codes.values()) == {404}
        large = {"model": MODEL, "prompt": "x" * 65536}
        assert client.post("/v1/completions", json=large).status_code == 413


def test_tokens_come_one_by_one(served: Served) -> None:
    tokens = 200
    body = {"model": MODEL, "prompt": "Count:", "max_tokens": tokens, "ignore_eos": True}
    with (
        served.client(FIRST) as client,
        client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer,
    ):
        arrivals = sum(1 for _ in answer.iter_raw())
    assert arrivals > tokens / 2  # a buffer of nginx's would hold a dozen of them or more


def test_status_tells_of_both(served: Served) -> None:
    done = served.cli()("status", served.spec, "--json")
    assert done.returncode == 0, done.stdout
    status = json.loads(done.stdout)
    [node] = status["nodes"]
    assert node["services"] == [
        {"role": "gateway", "process": "running"},
        {"role": "prometheus", "process": "running"},
    ]
    assert status["endpoints"]["gateway"] == f"http://{served.host.address}:8080/v1"


def test_status_takes_the_last_minute_from_prometheus(served: Served) -> None:
    def rates() -> dict[str, Any]:
        done = served.cli()("status", served.spec, "--json")
        return dict(json.loads(done.stdout)["models"][0]["figures"]["rates"])

    def recorded() -> bool:
        with served.client(FIRST) as client:
            client.post("/v1/completions", json={"model": MODEL, "prompt": "A", "max_tokens": 1})
        now = rates()
        return bool(now["source"] == "prometheus" and now["requests_per_second"] > 0)

    wait_for(recorded, "figures of Prometheus", 90)
    now = rates()
    assert (now["window_seconds"], now["errors_per_second"]) == (60.0, 0.0)
    assert now["generated_tokens_per_second"] > 0


@contextmanager
def tunnel(served: Served) -> Iterator[Mapping[str, str]]:
    """Run `raycluster tunnel` and yield its addresses by name."""
    with served.cli().start("tunnel", served.spec) as process:
        assert process.stdout
        found: dict[str, str] = {}
        for line in process.stdout:
            if match := re.match(r"\W*(\w[\w ]*?)\s+(http://127\.0\.0\.1:\d+)", line):
                found[match[1]] = match[2]
            if len(found) == 4:
                break
        try:
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def test_the_tunnel_brings_the_gateway_and_prometheus_with_figures_of_ray(served: Served) -> None:
    with tunnel(served) as urls, httpx.Client(timeout=30, trust_env=False) as client:
        assert set(urls) == {"API", "gateway", "Ray dashboard", "Prometheus"}
        assert client.get(f"{urls['gateway']}/v1/models").status_code == 401

        def query(expression: str) -> list[dict[str, Any]]:
            answer = client.get(f"{urls['Prometheus']}/api/v1/query", params={"query": expression})
            return list(answer.json()["data"]["result"])

        def values(expression: str) -> list[str]:
            return [result["value"][1] for result in query(expression)]

        wait_for(lambda: values("up") == ["1"] * 6, "all targets to be up", 60)
        [ray] = query('up{job="ray"}')
        assert (ray["metric"]["node"], ray["metric"]["role"]) == ("head", "head")
        wait_for(lambda: bool(query("ray_serve_deployment_replica_healthy")), "Serve's figures", 60)
        wait_for(lambda: bool(query("haproxy_frontend_http_requests_total")), "HAProxy's", 60)


def test_keys_are_nowhere_but_in_the_gateways_file(served: Served) -> None:
    cli, host = served.cli(), served.host
    said = [
        cli("plan", served.spec, "--json").stdout,
        cli("status", served.spec, "--json").stdout,
        cli("logs", "--spec", served.spec, "gateway", "--tail", "1000").stdout,
        host.check("docker", "inspect", "raycluster-gate-gateway"),
        host.check("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
    ]
    for text in said:
        assert text
        assert FIRST not in text
    assert '"key":"alice"' in said[2]


def test_a_new_key_is_the_only_change_and_takes_effect(served: Served) -> None:
    containers = ("docker", "ps", "-q", "--no-trunc")
    before = served.host.check(*containers)
    changes = [(c["action"], c["role"]) for c in served.up(SECOND)]
    assert changes == [("reload", "gateway")]
    assert served.host.check(*containers) == before
    with served.client(FIRST) as former, served.client(SECOND) as present:
        assert former.get("/v1/models").status_code == 401
        assert present.get("/v1/models").status_code == 200


def test_a_lost_gateway_is_noticed_and_repaired(served: Served) -> None:
    served.host.check("docker", "rm", "-f", "raycluster-gate-gateway")
    done = served.cli(SECOND)("status", served.spec, "--json")
    assert done.returncode == 3
    [problem] = json.loads(done.stdout)["problems"]
    assert (problem["where"], problem["what"]) == ("head", "has no gateway")
    assert [(c["action"], c["role"]) for c in served.up(SECOND)] == [("start", "gateway")]


def test_down_leaves_nothing(served: Served) -> None:
    done = served.cli()("down", served.spec, "--yes")
    assert done.returncode == 0, done.stderr
    assert served.host.containers() == []
    assert served.host.check("docker", "volume", "ls", "-q") == ""
    assert served.host.processes() == []
