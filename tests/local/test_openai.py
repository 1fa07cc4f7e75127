"""OpenAI's API as its own client uses it, on real engines, and what replicas say of themselves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from raycluster.observe.engine_metrics import read_service
from raycluster.serve.settings import ROUTER, ModelSettings
from tests.contract.nginx import ALICE, KEYS, bearer
from tests.contract.nginx import running as running_gateway
from tests.local.cluster import ROOT, Cluster, descendants, made_by, until

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

VLLM, PLAIN, VECTORS = "small", "plain", "vectors"
ALIAS, PLAIN_ALIAS = "gpt-4o", "org/plain"
KEEPS = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
ARGS = {"max_model_len": 1024, "enforce_eager": True}
TOOLS_ARGS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
POOLING = {"runner": "pooling", "convert": "embed", "max_model_len": 512, "enforce_eager": True}
BOTH = pytest.mark.parametrize("name", [VLLM, PLAIN])
FRANCE: Any = [{"role": "user", "content": "Answer with one word: What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def served(cluster: Cluster, model: str) -> Cluster:
    """The model on vLLM, on transformers, and as one that makes vectors."""
    cluster.put(
        ModelSettings(VLLM, model, engine_args=ARGS | TOOLS_ARGS, aliases=(ALIAS,), env=KEEPS),
        ModelSettings(
            PLAIN,
            model,
            engine="transformers",
            engine_args={"max_model_len": 1024},
            aliases=(PLAIN_ALIAS,),
        ),
        ModelSettings(VECTORS, model, engine_args=POOLING),
    )
    until(cluster.running, seconds=480, what="not running")
    return cluster


@pytest.fixture(scope="module")
def client(served: Cluster) -> Iterator[openai.OpenAI]:
    url = str(served.http.base_url.join("/v1"))
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    names = [VLLM, ALIAS, PLAIN, PLAIN_ALIAS, VECTORS]
    assert [card.id for card in client.models.list()] == names
    assert [client.models.retrieve(name).id for name in names] == names
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("nope")


def test_a_model_answers_to_its_alias(client: openai.OpenAI) -> None:
    for pad in ("", "x" * 70_000):  # of which the second one passes the router
        answer = client.completions.create(
            model=ALIAS, prompt="The capital of France is", max_tokens=1, temperature=0,
            extra_headers={"x-request-id": "mine"}, extra_body={"user": pad},
        )  # fmt: skip
        assert (answer.choices[0].text, answer.model) == (" Paris", VLLM)
        assert answer.id == "cmpl-mine"
    plain = client.completions.create(model=PLAIN_ALIAS, prompt="The", max_tokens=1)
    assert plain.model == PLAIN


def test_an_answer_is_found_again_and_gone_on_from(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model=VLLM, input="Once upon a time", max_output_tokens=900, background=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert client.responses.retrieve(first.id).status in ("queued", "in_progress")
    assert client.responses.cancel(first.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nope")
    said = client.responses.create(model=VLLM, input="Hello", max_output_tokens=4)
    client.responses.create(
        model=VLLM, input="Go on", previous_response_id=said.id, max_output_tokens=4
    )


def test_completions_with_choices_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=VLLM, prompt="The capital of France is", n=2, max_tokens=3, logprobs=2, seed=1
    )
    first, second = answer.choices
    assert (first.index, second.index) == (0, 1)
    assert first.text
    assert second.text
    assert first.logprobs is not None
    assert first.logprobs.tokens is not None
    assert first.logprobs.top_logprobs is not None
    assert "".join(first.logprobs.tokens) == first.text
    assert all(len(each) >= 2 for each in first.logprobs.top_logprobs)


def test_completions_echo_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=VLLM, prompt="The capital of France is", echo=True, max_tokens=1, temperature=0
    )
    assert answer.choices[0].text == "The capital of France is Paris"


def test_several_prompts_in_one_request(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "The capital of Italy is"]
    answer = client.completions.create(model=VLLM, prompt=prompts, max_tokens=1, temperature=0)
    assert [choice.text for choice in answer.choices] == [" Paris", " Rome"]


@BOTH
def test_a_seed_repeats_a_sample(client: openai.OpenAI, name: str) -> None:
    def sample(seed: int) -> str:
        answer = client.completions.create(
            model=name, prompt="Once upon a time", seed=seed, max_tokens=12, temperature=1.0
        )
        return answer.choices[0].text

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1


@BOTH
def test_stop_strings(client: openai.OpenAI, name: str) -> None:
    answer = client.completions.create(
        model=name, prompt="1, 2, 3, 4,", stop=[" 7"], max_tokens=30, temperature=0
    )
    assert "6" in answer.choices[0].text
    assert "7" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


@BOTH
def test_streams_end_with_usage(client: openai.OpenAI, name: str) -> None:
    parts = list(
        client.completions.create(
            model=name,
            prompt="The capital of France is",
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(part.choices[0].text for part in parts[:-1]).startswith(" Paris")
    assert parts[-1].choices == []
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 5


@BOTH
def test_chat(client: openai.OpenAI, name: str) -> None:
    asked: Any = {"model": name, "messages": FRANCE, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    stream = client.chat.completions.create(**asked, stream=True)
    deltas = [part.choices[0].delta for part in stream if part.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=VLLM, messages=FRANCE, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_is_named_is_called(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {
        "model": VLLM,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 60,
        "temperature": 0,
    }
    if stream:
        parts = client.chat.completions.create(**asked, stream=True)
        calls = [call for p in parts if p.choices for call in p.choices[0].delta.tool_calls or []]
        name = next(c.function.name for c in calls if c.function and c.function.name)
        told = "".join(c.function.arguments or "" for c in calls if c.function)
    else:
        (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
        assert call.type == "function"
        name, told = call.function.name, call.function.arguments
    assert name == "get_weather"
    assert json.loads(told)  # of JSON, but vLLM does not hold a small model to the tool's schema


def test_tools_may_be_left_to_the_model(client: openai.OpenAI) -> None:
    """The small model calls none; the request is understood, and answered in words."""
    answer = client.chat.completions.create(
        model=VLLM, messages=FRANCE, tools=[WEATHER], tool_choice="auto", max_tokens=16
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls


def test_structured_output_follows_the_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "size": {"enum": ["small", "large"]},
        },
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=VLLM,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
        max_tokens=100,
        temperature=0,
    )
    told = json.loads(answer.choices[0].message.content or "")
    assert told.keys() == {"city", "size"}
    assert told["size"] in ("small", "large")


def test_tokenize_and_detokenize(served: Cluster) -> None:
    text = "The capital of France is Paris."
    tokens = served.http.post("/tokenize", json={"model": VLLM, "prompt": text}).json()["tokens"]
    back = served.http.post("/detokenize", json={"model": VLLM, "tokens": tokens})
    assert back.json()["prompt"] == text


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["A cat sat on the mat.", "A cat sat on the mat.", "Stocks fell."]
    first, same, other = (
        each.embedding for each in client.embeddings.create(model=VECTORS, input=texts).data
    )
    assert len(first) == 576
    product = [sum(a * b for a, b in zip(first, v, strict=True)) for v in (same, other)]
    assert product[0] == pytest.approx(1, abs=0.01)
    assert product[1] < 0.99


def test_scores(served: Cluster) -> None:
    body = {"model": VECTORS, "text_1": "A cat.", "text_2": ["A cat.", "Stocks fell."]}
    answer = served.http.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    same, other = (each["score"] for each in answer.json()["data"])
    assert same == pytest.approx(1, abs=0.02)
    assert other < same


def has_openai_s_form(answer: httpx.Response) -> bool:
    error = answer.json()["error"]
    return (
        error.keys() >= {"message", "type", "param", "code"}
        and bool(error["message"])
        and error["code"] == answer.status_code
    )


WRONG = [
    ("/v1/completions", b'{"model": ', "application/json", 400),
    ("/v1/completions", b"[1]", "application/json", 400),
    ("/v1/completions", b"model=small", "text/plain", 400),
    ("/v1/chat/completions", b'{"messages": 5}', "application/json", 400),
    ("/v1/chat/completions", b'{"messages": []}', "application/json", 400),
    ("/v1/chat/completions", b"\xff\xfe", "application/json", 400),
    ("/v1/nothing", b"{}", "application/json", 404),
]


@BOTH
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0]} {wrong[1]!r}")
def test_errors_have_openai_s_form(
    served: Cluster, name: str, wrong: tuple[str, bytes, str, int]
) -> None:
    path, body, kind, status = wrong
    answer = served.http.post(f"/m/{name}{path}", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert has_openai_s_form(answer), answer.text


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nothing"])
def test_the_router_s_errors_have_openai_s_form(served: Cluster, path: str) -> None:
    answer = served.http.post(path, content=b'{"model": ')
    assert answer.status_code == 400
    assert has_openai_s_form(answer), answer.text


def each(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


REFUSED = [
    *each("max_tokens", 0, -1, 10**9, 1.5, "x", float("inf"), []),
    *each("min_tokens", -1, 9, "x", float("nan")),
    *each("temperature", -1, 2.5, float("nan"), float("inf"), "x"),
    *each("top_p", 0, 1.5, float("nan")),
    *each("top_k", -2, 0.5),
    *each("min_p", -1, 2),
    *each("repetition_penalty", 0, -1, float("inf")),
    *[{name: 2.5} for name in ("frequency_penalty", "presence_penalty")],
    *each("seed", 2**64, 2**63, 0.5, "x"),
    *each("n", 0, -1, "x"),
    {"n": 2, "temperature": 0},
    *each("stop", [""], [1], 5, ["a"] * 5),
    *each("stop_token_ids", "x", [10**6], [-1]),
    *each("allowed_token_ids", [], [-1], [10**6]),
    *each("logit_bias", {"x": 1}, {"1": "x"}, {"1000000": 1}, {"-1": 1}),
    *each("stream_options", "x", {"include_usage": True}),
    *[{name: "x"} for name in ("stream", "ignore_eos", "skip_special_tokens")],
    *each("prompt", None, [], 5, [-1], [10**6], [1.5], {}, "a " * 5000),
]
TAKEN = [
    *each("max_tokens", 1, "2", 2.0, None),
    *each("n", 1, 2),
    *each("stop", None, [], "x", ["x", "y"]),
    *each("prompt", ["a", "b"], [5, 6], [[5], [6, 7]]),
    *each("stream", None, False),
    *each("model", None),
    *each("seed", -1, 2**63 - 1),
    *each("stop_token_ids", None, [5]),
    *each("logit_bias", {"5": 200}),
    *each("min_tokens", 2),
    *each("allowed_token_ids", [5, 6]),
    *each("bad_words", ["a", "b c"]),
    *each("top_k", -1, 0, 5),
    *each("frequency_penalty", 1, -2),
    *each("presence_penalty", -1),
    *each("repetition_penalty", 1.5),
    *each("response_format", None, {"type": "text"}),
    *each("best_of", 1),
    *each("priority", 0),
    *each("logprobs", None),
    *each("echo", False),
    *each("user", "me"),
    *each("another_field", 1),
]


@BOTH
@pytest.mark.parametrize("wanted", [200, 400])
def test_both_engines_take_and_refuse_the_same(served: Cluster, name: str, wanted: int) -> None:
    other = []
    for change in TAKEN if wanted == 200 else REFUSED:
        body = {"prompt": "Once", "max_tokens": 4, **change}
        kind, content = {"Content-Type": "application/json"}, json.dumps(body)
        answer = served.http.post(f"/m/{name}/v1/completions", content=content, headers=kind)
        if answer.status_code != wanted or (wanted == 400 and not has_openai_s_form(answer)):
            other.append((str(change)[:60], answer.status_code, answer.text[:200]))
    assert other == []


def marks(pids: Iterable[int]) -> set[str]:
    """Return how early the kernel ends these processes, of those that live."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/oom_score_adj").read_text().strip())
    return found


def test_replicas_and_engines_end_first_where_memory_is_used_up(served: Cluster) -> None:
    apps = served.details()["applications"]
    serving = served.pids(*(app for name, app in apps.items() if name != ROUTER))
    assert marks(serving) == {"1000"}
    assert marks(set(descendants(served.process.pid)) - serving) == marks([os.getpid()])


@BOTH
def test_ready_when_a_token_comes(served: Cluster, name: str) -> None:
    answer = served.http.get(f"/m/{name}/raycluster/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})


def test_models_of_all_kinds_are_ready_together(served: Cluster) -> None:
    answer = served.http.get("/raycluster/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})


def exported(cluster: Cluster) -> str:
    """Return what this node's exporter shows."""
    (option,) = (a for a in map(str, cluster_args(cluster)) if "--metrics-export-port=" in a)
    return httpx.get(f"http://127.0.0.1:{option.partition('=')[2]}/metrics", timeout=60).text


def cluster_args(cluster: Cluster) -> list[Any]:
    args = cluster.process.args
    assert isinstance(args, list)
    return args


def documented() -> list[tuple[str, str]]:
    """Return the names and types of the table in docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    return re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)


def test_the_node_exports_every_documented_metric(served: Cluster, client: openai.OpenAI) -> None:
    for name in (VLLM, PLAIN):
        stream = client.completions.create(model=name, prompt="a", max_tokens=2, stream=True)
        assert list(stream)
    names = documented()
    assert len(names) == 10
    series = [name + ("_count" if kind == "histogram" else "") for name, kind in names]
    series += ["ray_vllm_generation_tokens_total", "ray_vllm_e2e_request_latency_seconds_bucket"]
    text = until(
        lambda: next((t for t in [exported(served)] if all(f"{s}{{" in t for s in series)), ""),
        seconds=60,
        what="not all documented metrics are exported",
    )
    counted = [line for line in text.splitlines() if "raycluster_requests_total{" in line]
    for name, engine in ((VLLM, "vllm"), (PLAIN, "transformers")):
        wanted = (f'model="{name}"', f'engine="{engine}"', 'endpoint="/v1/completions"', '"200"')
        assert any(all(part in line for part in wanted) for line in counted), counted


@BOTH
def test_a_replica_s_own_metrics_are_there_too(served: Cluster, name: str) -> None:
    text = served.http.get(f"/m/{name}/metrics").text
    assert "raycluster_engine_start_seconds{" in text
    assert ("vllm:generation_tokens_total{" in text) == (name == VLLM)


@BOTH
def test_a_replica_tells_what_it_had_counted_before(served: Cluster, name: str) -> None:
    body = {"model": name, "prompt": "Once", "max_tokens": 2}
    assert served.http.post("/v1/completions", json=body).status_code == 200

    def told() -> httpx.Response | None:
        """A machine that stood still for a moment tells it of a little longer ago, and then not."""
        earlier = served.http.get(f"/m/{name}/raycluster/earlier")
        return earlier if 0 <= float(earlier.headers["x-raycluster-age"]) < 13 else None

    earlier = until(told, seconds=30, what="it tells what is long ago")
    assert earlier
    before = read_service(earlier.text, name)
    now = read_service(served.http.get(f"/m/{name}/metrics").text, name)
    assert before
    assert now
    assert before.engine.started == now.engine.started > 0
    assert before.requests < now.requests
    assert before.tokens is not None
    assert now.tokens is not None
    assert before.tokens < now.tokens


def figure(cluster: Cluster, *names: str) -> float:
    """Return the sum of figures of vLLM's."""
    lines = cluster.http.get(f"/m/{VLLM}/metrics").text.splitlines()
    begins = tuple(f"vllm:{name}{{" for name in names)
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begins))


def running(cluster: Cluster) -> float:
    return figure(cluster, "num_requests_running", "num_requests_waiting")


async def hang_up(url: str, name: str, count: int) -> None:
    """Begin `count` streams, read one event of each, and drop them all at once."""
    body = {"model": name, "prompt": "Once", "max_tokens": 900, "stream": True, "ignore_eos": True}
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http,
        contextlib.AsyncExitStack() as streams,
    ):

        async def begin() -> None:
            request = http.stream("POST", f"/m/{name}/v1/completions", json=body)
            response = await streams.enter_async_context(request)
            assert response.status_code == 200
            await anext(response.aiter_raw())

        await asyncio.gather(*(begin() for _ in range(count)))


def test_two_hundred_that_hang_up_leave_no_request_in_vllm(served: Cluster) -> None:
    asyncio.run(hang_up(str(served.http.base_url), VLLM, 200))
    until(lambda: running(served) == 0, seconds=30, what="requests still run")


LONG = {"max_tokens": 900, "ignore_eos": True}
CHAT = {"messages": FRANCE, **LONG}
ASKED: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/completions", {"prompt": "a", "n": 8, "stream": s, **LONG}) for s in (False, True)),
    *(("/v1/chat/completions", {**CHAT, "stream": s}) for s in (False, True)),
    *(("/v1/messages", {**CHAT, "stream": s}) for s in (False, True)),
    *(
        ("/v1/responses", {"input": "a", "max_output_tokens": 900, **LONG, "stream": s})
        for s in (False, True)
    ),
]
"""Of the first four vLLM makes 18 sequences of 900 tokens."""


@pytest.mark.parametrize("way", ["haproxy", "router", "replica", "engine", "gateway"])
def test_who_hangs_up_lets_go_of_the_engine(served: Cluster, way: str, tmp_path: Path) -> None:
    """Whole answers as well as streams: no token is made for nobody."""
    [engine, own] = ports_of(served, VLLM)
    with contextlib.ExitStack() as opened:
        port, before = served.http.base_url.port or 0, ""
        if way == "gateway":
            gateway = opened.enter_context(running_gateway(tmp_path, port, paths=["/"]))
            port = gateway.base_url.port or 0
        elif way in ("replica", "engine"):
            port, before = {"replica": own, "engine": engine}[way], f"/m/{VLLM}"
        made = figure(served, "generation_tokens_total")
        for path, told in reversed(ASKED):  # those that may end by themselves are there by then
            body = {"pad": "x" * 70_000 * (way == "router"), "model": VLLM, **told}
            left = opened.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            left.sendall(post(before + path, json.dumps(body).encode()))
        until(lambda: all_at_work(served), seconds=120, what="not all are at work")
    until(lambda: running(served) == 0, seconds=30, what="they are at work for nobody")
    made = figure(served, "generation_tokens_total") - made
    assert made < 18 * 900 / 2


SAME: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 8}),
    ("/v1/chat/completions", {"messages": FRANCE, "max_tokens": 8}),
    ("/v1/messages", {"messages": FRANCE, "max_tokens": 8}),
    ("/v1/responses", {"input": "Name a city.", "max_output_tokens": 8}),
]


def text_of(told: Any) -> str:
    """Return the text of an answer, or of an event of one."""
    if isinstance(told, list):
        return "".join(map(text_of, told))
    if not isinstance(told, dict):
        return ""
    if str(told.get("type", "")).endswith((".done", ".added", ".completed", "_stop")):
        return ""  # which say again what was said
    delta = told.get("delta")
    own = [v for name in ("text", "content") if isinstance(v := told.get(name), str)]
    inner = [told.get(n) for n in ("choices", "message", "content", "output", "delta")]
    return "".join([*own, delta if isinstance(delta, str) else "", text_of(inner)])


@pytest.mark.parametrize(("path", "told"), SAME, ids=[path for path, _ in SAME])
def test_every_way_to_a_model_has_the_same_answer(
    served: Cluster, path: str, told: dict[str, Any], tmp_path: Path
) -> None:
    """Straight to the engine, by HAProxy, by the router, and by the gateway; whole and streamed."""
    [engine, own] = ports_of(served, VLLM)
    ingress = served.http.base_url.port or 0
    said = {}
    with running_gateway(tmp_path, ingress, **KEYS) as gateway:
        ways = {"engine": engine, "replica": own, "haproxy": ingress, "router": ingress}
        ways["gateway"] = gateway.base_url.port or 0
        for way, stream in itertools.product(ways, (False, True)):
            body = {**told, "model": VLLM, "temperature": 0, "stream": stream}
            body["pad"] = "x" * 70_000 * (way == "router")
            route = f"/m/{VLLM}" if way in ("engine", "replica") else ""
            url = f"http://127.0.0.1:{ways[way]}{route}{path}"
            answer = httpx.post(url, json=body, headers=bearer(ALICE), timeout=60)
            assert answer.status_code == 200, (way, answer.text)
            events = re.findall(r"(?m)^data: (\{.*)$", answer.text) if stream else [answer.text]
            said[way, stream] = text_of([json.loads(event) for event in events])
    assert set(said.values()) == {said["engine", False]}, said
    assert said["engine", False]


def test_clients_of_other_makers_work_as_they_are(served: Cluster, tmp_path: Path) -> None:
    """By the gateway, with a key; what they do is in `client_calls`."""
    python = f"{made_by('clients-env')}/bin/python"
    with running_gateway(tmp_path, served.http.base_url.port or 0, **KEYS) as gateway:
        url = str(gateway.base_url).rstrip("/")
        words = (python, str(ROOT / "tests/local/client_calls.py"), url, ALICE, VLLM)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    told = dict(map(json.loads, done.stdout.splitlines()))
    assert [name for name, problem in told.items() if problem] == [], told
    assert len(told) == 5


def all_at_work(cluster: Cluster) -> bool:
    """Tell whether as many run as have to, and no more are on their way."""
    found = running(cluster)
    time.sleep(0.5)
    return found >= 18 and running(cluster) == found


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ports_of(cluster: Cluster, app: str) -> tuple[int, int]:
    """Return where HAProxy asks the engine of an application's only replica, and the replica."""

    def found() -> list[tuple[str, str]]:
        [path] = (cluster.folder / "h").rglob("haproxy.cfg")
        section = path.read_text().partition(f"backend http-{app}\n")[2].partition("\nbackend ")[0]
        return re.findall(r"server \S+ \S+:(\d+) check addr \S+ port (\d+) ", section)

    [(engine, own)] = until(found, seconds=30, what="HAProxy knows no engine")
    return int(engine), int(own)


def test_one_that_hangs_up_frees_transformers(served: Cluster) -> None:
    def made() -> float:
        lines = served.http.get(f"/m/{PLAIN}/metrics").text.splitlines()
        counted = [line for line in lines if line.startswith("raycluster_tokens_total{")]
        return sum(float(x.rpartition(" ")[2]) for x in counted if 'kind="prompt"' not in x)

    before = made()
    asyncio.run(hang_up(str(served.http.base_url), PLAIN, 1))
    until(lambda: made() > before, seconds=60, what="the generation has not ended")
    assert made() - before < 900 / 2
    body = {"model": PLAIN, "prompt": "a", "max_tokens": 1}
    assert served.http.post("/v1/completions", json=body).status_code == 200


def engine_process(cluster: Cluster, app: str) -> int:
    """Return the process of the engine of the application's only replica."""
    deployments = cluster.details()["applications"][app]["deployments"].values()
    (replica,) = (replica for d in deployments for replica in d["replicas"])
    below = descendants(replica["pid"])
    named = [p for p in below if b"EngineCore" in Path(f"/proc/{p}/cmdline").read_bytes()]
    (engine,) = named
    return engine


@pytest.mark.long
def test_an_engine_that_hangs_is_not_ready(served: Cluster) -> None:
    engine = engine_process(served, VLLM)
    os.kill(engine, signal.SIGSTOP)
    try:
        until(
            lambda: served.http.get(f"/m/{VLLM}/raycluster/ready").status_code == 503,
            seconds=30,
            what="still ready",
        )
        assert served.http.get(f"/m/{VLLM}/health").status_code == 200
        answer = served.http.get(f"/m/{VLLM}/raycluster/ready")
        assert answer.json()["error"]["message"].endswith("no token within 10 s")
    finally:
        os.kill(engine, signal.SIGCONT)
    until(
        lambda: served.http.get(f"/m/{VLLM}/raycluster/ready").status_code == 200,
        seconds=30,
        what="not ready again",
    )
