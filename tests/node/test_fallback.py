"""The transformers engine over HTTP, without Ray: what it honours, what it refuses, who leaves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.local.cluster import ROOT, made_by, until
from tests.ports import free_ports
from tests.unit.serve.engines.test_requests import FIELDS, VALUES

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]

CONTEXT = 3000
END = "2"
TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = {"prompt": "hello there", "max_tokens": 8, "temperature": 0}
LONG: dict[str, Any] = {"prompt": "Once", "max_tokens": 2900, "ignore_eos": True}


@contextmanager
def serve(**args: Any) -> Iterator[httpx.Client]:
    (port,) = free_ports(1)
    python = f"{made_by('node-env')}/bin/python"
    words = ("-m", "tests.node.fallback_server", str(port), made_by("tiny"), json.dumps(args))
    env = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    with (
        subprocess.Popen([python, *words], cwd=ROOT, env=env, stdout=subprocess.PIPE) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield client
        finally:
            process.kill()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serve(max_model_len=CONTEXT, max_num_seqs=4, dtype="float32") as client:
        yield client


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post(TEXT, json={**HELLO, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text(client: httpx.Client, **body: Any) -> str:
    return str(ask(client, **body)["choices"][0]["text"])


def counts(client: httpx.Client) -> tuple[int, int]:
    """Return the generated tokens that were counted, and the requests that transformers has."""
    _, generated, now = client.get("/counts").json()
    return generated, now


def test_the_parameters_of_sampling_are_honoured(client: httpx.Client) -> None:
    usual = text(client)
    word = usual.split()[-1]
    assert usual.count(word) > 1, "the model repeats itself"
    assert text(client, repetition_penalty=50.0) != usual
    assert text(client, frequency_penalty=2.0, presence_penalty=2.0) != usual
    assert word not in text(client, bad_words=[word])
    assert text(client, temperature=2.0, seed=3) == text(client, temperature=2.0, seed=3)
    assert len({text(client, temperature=2.0, seed=seed) for seed in range(4)}) > 1
    assert text(client, temperature=2.0, top_k=1) == usual
    assert text(client, temperature=2.0, top_p=1e-9) == usual
    assert text(client, temperature=2.0, min_p=1.0) == usual


def test_tokens_are_forced_and_end_where_they_shall(client: httpx.Client) -> None:
    forced = text(client, allowed_token_ids=[300], max_tokens=3)
    assert forced
    assert text(client, logit_bias={"300": 100}, max_tokens=3) == forced
    ended = ask(client, allowed_token_ids=[300], stop_token_ids=[300])
    (choice,) = ended["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", 300)
    assert text(client, allowed_token_ids=[300], min_tokens=5, stop=[forced[:1]])[:1] == forced[:1]


def test_min_tokens(client: httpx.Client) -> None:
    """The end, which every token's sampling prefers, comes when it may."""
    for least in (0, 1, 5):
        found = ask(client, logit_bias={END: 100}, min_tokens=least)
        assert found["choices"][0]["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] == least + 1


def test_an_only_token_that_may_not_come_comes(client: httpx.Client) -> None:
    assert ask(client, allowed_token_ids=[int(END)], min_tokens=3)["choices"]


def test_several_prompts_and_choices(client: httpx.Client) -> None:
    found = ask(client, prompt=[[5, 6], [5, 6, 7]], n=2, temperature=1, stop=["z"])
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"]["prompt_tokens"] == 5
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 2, "stream": True}
    lines = client.post(CHAT, json={**body, "max_tokens": 3}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line[6:7] == "{"]
    choices = [event["choices"][0] for event in events]
    assert sorted(c["index"] for c in choices if c["delta"].get("role")) == [0, 1]
    assert sorted(c["index"] for c in choices if c["finish_reason"]) == [0, 1]


def test_requests_side_by_side_are_answered_as_alone(client: httpx.Client) -> None:
    """There are more than places, and each has parameters of its own."""
    bodies = [{"temperature": 0.1 * n, "seed": n, "max_tokens": 20 + n} for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda body: ask(client, ignore_eos=True, **body), bodies))
    assert [each["usage"]["completion_tokens"] for each in found] == [20 + n for n in range(12)]
    for body, answer in zip(bodies, found, strict=True):
        assert ask(client, ignore_eos=True, **body)["choices"] == answer["choices"]


BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODIES, st.booleans())
def test_no_request_is_an_error_of_the_server(
    client: httpx.Client, body: dict[str, Any], chat: bool
) -> None:
    usual = {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi"}
    sent = json.dumps({"max_tokens": 2, **usual, **body})
    answer = client.post(CHAT if chat else TEXT, content=sent)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == answer.status_code


@pytest.mark.parametrize("size", [3, 20, 60], ids="{} MB".format)
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_what_is_far_too_long_is_refused_while_others_are_answered(
    client: httpx.Client, path: str, size: int
) -> None:
    long = "The quick brown fox. " * (size * 50_000)
    body = {"prompt": long} if path == TEXT else {"messages": [{"role": "user", "content": long}]}
    waited = []
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, path, json=body)
        while not answer.done():
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            waited.append(time.monotonic() - began)
    assert answer.result().status_code == 400
    assert "context" in answer.result().json()["error"]["message"]
    assert max(waited) < 5


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("many", [1, 12], ids=["running", "waiting too"])
def test_who_leaves_frees_the_place(client: httpx.Client, many: int, stream: bool) -> None:
    before, _ = counts(client)

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as http:
            asked = [asyncio.ensure_future(post(http)) for _ in range(many)]
            while counts(client)[1] < many:
                await asyncio.sleep(0.05)
            for each in asked:
                each.cancel()
            await asyncio.wait(asked)

    async def post(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", TEXT, json={**LONG, "stream": stream}) as answer:
            await answer.aread()

    asyncio.run(leave())
    until(lambda: counts(client)[1] == 0, seconds=60, what="transformers still generates")
    assert counts(client)[0] - before < LONG["max_tokens"]
