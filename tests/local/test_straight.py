"""Requests that HAProxy sends to vLLM's own server: their limits, and what a dead engine costs."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from raycluster.serve.settings import ModelSettings
from tests.local.cluster import Cluster, descendants, until
from tests.local.load import under_load
from tests.local.rolling import at_work, deploy, with_args
from tests.local.tiny import NAME, tiny

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

ONGOING, QUEUED = 4, 6


@pytest.fixture(scope="module")
def model() -> ModelSettings:
    """With a flag that can be switched on alone, and is said to be off."""
    return with_args(tiny(), disable_log_stats=False)


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: ModelSettings) -> Cluster:
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
