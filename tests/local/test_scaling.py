"""Replicas that come and go, full queues, adapters and replicas of several workers, on real Ray."""

from __future__ import annotations

import json
import random
import struct
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import Autoscale, ModelSettings, applications
from tests.local.cluster import LABEL, Cluster, until
from tests.local.deployed import out_of_date
from tests.local.test_serve import ARGS
from tests.local.tiny import tiny

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

POLICY = """
def two(context):
    return 2, {}
"""


def ask(cluster: Cluster, name: str, **more: Any) -> httpx.Response:
    body = {"model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    return cluster.http.post("/v1/completions", json={**body, **more}, timeout=200)


def flood(cluster: Cluster, name: str, count: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ask(cluster, name), range(count)))


def replicas(cluster: Cluster, app: str) -> list[Any]:
    (deployment,) = cluster.details()["applications"][app]["deployments"].values()
    return list(deployment["replicas"])


def adapter(folder: Path, source: str, rank: int = 8) -> str:
    """Make an adapter for the model at `source` that changes all that it says."""
    config = json.loads((Path(source) / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = {"q_proj": hidden, "v_proj": hidden // heads * config["num_key_value_heads"]}
    drawn, data, header = random.Random(0), array("f"), {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            for part, shape in (("A", [rank, hidden]), ("B", [size, rank])):
                begin = len(data) * 4
                data.extend(drawn.gauss(0, 0.5) for _ in range(shape[0] * shape[1]))
                key = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{part}.weight"
                offsets = [begin, len(data) * 4]
                header[key] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    told = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(told)) + told + data.tobytes()
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 64, "bias": "none"}
    settings |= {"target_modules": list(sizes), "task_type": "CAUSAL_LM", "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: str, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A model that sleeps, one with an adapter, one with a policy, and the router in front."""
    made = adapter(tmp_path_factory.mktemp("adapter"), model)
    (cluster.folder / "code" / "pairs.py").write_text(POLICY)  # where Ray's processes import from
    wanted = cluster.put(
        ModelSettings(
            "sleepy",
            model,
            engine="transformers",
            replicas=Autoscale(0, 1, target_ongoing_requests=2, to_zero_delay=1),
            max_ongoing_requests=1,
            max_queued_requests=2,
        ),
        ModelSettings("base", model, engine_args=ARGS, adapters={"tuned": made}),
        ModelSettings(
            "pair",
            model,
            engine="transformers",
            replicas=Autoscale(1, 2, upscale_delay=0, policy="pairs:two"),
        ),
    )
    until(cluster.running, seconds=300, what="not running")
    assert out_of_date(wanted, cluster.details()) == ()
    return cluster


def asleep(cluster: Cluster) -> None:
    def sleeps() -> bool:
        app = cluster.details()["applications"]["sleepy"]
        left = [r for d in app["deployments"].values() for r in d["replicas"]]
        return not left and app["status"] == "RUNNING"

    until(sleeps, seconds=120, what="still has a replica, or does not run")


def test_an_adapter_is_a_model_of_its_own(served: Cluster) -> None:
    names = [card["id"] for card in served.http.get("/v1/models").json()["data"]]
    assert names == ["sleepy", "base", "tuned", "pair"]
    base, tuned = ask(served, "base"), ask(served, "tuned")
    assert (base.status_code, tuned.status_code) == (200, 200), tuned.text
    assert base.json()["choices"][0]["text"].startswith(" Paris")
    assert tuned.json()["model"] == "tuned"
    assert tuned.json()["choices"][0]["text"] != base.json()["choices"][0]["text"]


def test_a_policy_that_ray_cannot_import_is_refused(served: Cluster, model: str) -> None:
    scale = Autoscale(1, 2, policy="nowhere:policy")
    body = applications([ModelSettings("m", model, replicas=scale)], fingerprint="")
    answer = served.api.put("/api/serve/applications/", json=body)
    assert answer.status_code == 500
    assert root_cause(answer.text) == "ModuleNotFoundError: No module named 'nowhere'"


def test_a_policy_of_ones_own_decides(served: Cluster) -> None:
    until(lambda: len(replicas(served, "pair")) == 2, seconds=180, what="not two replicas")


def test_a_request_wakes_a_model_and_the_queue_is_bounded_meanwhile(served: Cluster) -> None:
    asleep(served)
    answers = flood(served, "sleepy", 24)
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 2
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "RateLimitError"
    assert len(replicas(served, "sleepy")) <= 1  # which may have gone to sleep by now


def test_an_overloaded_model_says_so_and_when_to_come_back(served: Cluster) -> None:
    assert ask(served, "sleepy").status_code == 200
    answers = flood(served, "sleepy", 24)
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == 429
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.long
def test_looking_wakes_nobody(served: Cluster) -> None:
    asleep(served)
    assert served.http.get("/v1/models").status_code == 200
    assert served.http.get("/raycluster/engine").json()["models"]["sleepy"] is None
    assert not replicas(served, "sleepy")


@pytest.fixture(scope="module")
def split(served: Cluster, model: str) -> Cluster:
    """A model over workers on one host, and one that cannot be split."""
    by_three, by_two = {"tensor_parallel_size": 3}, {"tensor_parallel_size": 2}
    served.put(
        ModelSettings("mp", model, engine="vllm", engine_args={**ARGS, **by_three}),
        ModelSettings("odd", model, engine="vllm", engine_args={**ARGS, **by_two}),
    )
    return served


@pytest.mark.long
def test_a_model_whose_heads_do_not_divide_is_refused_by_vllm_s_words(split: Cluster) -> None:
    message = until(lambda: split.failure("odd"), seconds=400, what="no failure")
    assert "attention heads (9) must be divisible by tensor parallel size (2)" in root_cause(
        message
    )


@pytest.mark.long
def test_a_replica_of_several_workers_answers(split: Cluster) -> None:
    def running() -> bool:
        app = split.details()["applications"]["mp"]
        assert app["status"] != "DEPLOY_FAILED", json.dumps(app)
        return bool(app["status"] == "RUNNING")

    until(running, seconds=480, what="not running")
    answer = ask(split, "mp")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].startswith(" Paris")


def test_replicas_are_on_the_hosts_of_their_model_alone(cluster: Cluster) -> None:
    """Both models ask for the same, at the same time; one for a host that is not there."""
    here = replace(
        tiny(), name="here", engine="transformers", engine_args={}, hosts={"here": LABEL}
    )
    cluster.put(here, replace(here, name="lost", hosts={"there": "10.9.9.9"}))

    def states(name: str) -> list[str]:
        deployments = cluster.details()["applications"].get(name, {}).get("deployments", {})
        return [
            each["state"] for deployment in deployments.values() for each in deployment["replicas"]
        ]

    until(lambda: states("here") == ["RUNNING"], seconds=240, what="it does not run")
    assert cluster.details()["applications"]["lost"]["status"] == "DEPLOYING"
    assert "RUNNING" not in states("lost")
    cluster.put(here, replace(here, name="lost"))
    until(lambda: states("lost") == ["RUNNING"], seconds=240, what="the other does not run either")
