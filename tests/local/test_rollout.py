"""Rolling updates on real Ray with a real engine, while clients ask without pause."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from raycluster.core.errors import AppError
from raycluster.core.tested_versions import VLLM_CPU
from raycluster.serve.engines.inside.key import LIMITS_HEADER, OWNER_HEADER
from raycluster.serve.settings import ENGINE_PATH, ModelSettings
from tests.local.cluster import Cluster, until
from tests.local.load import under_load
from tests.local.older import OLDER, older
from tests.local.rolling import FIRST_NEW_ONE, at_work, deploy, with_args
from tests.local.tiny import NAME, tiny

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

REQUESTS = 500


def engine_argument(cluster: Cluster, name: str) -> object:
    """Return what the application was last deployed with."""
    config = cluster.details()["applications"][NAME]["deployed_app_config"]
    return config["args"]["model"]["engine_args"].get(name)


@pytest.fixture(scope="module")
def model() -> ModelSettings:
    return tiny()


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: ModelSettings) -> Cluster:
    deploy(cluster, model)
    until(cluster.running, seconds=120, what="HAProxy does not know the replica")
    return cluster


def engine_ports(cluster: Cluster) -> list[int]:
    """Return where HAProxy finds the servers of engines."""
    [path] = (cluster.folder / "h").rglob("haproxy.cfg")
    found = re.findall(r"server \S+ 127\.0\.0\.1:(\d+) check addr", path.read_text())
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
