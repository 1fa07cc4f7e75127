"""Ids, urls and bodies of batch lines."""

from __future__ import annotations

import json

import pytest

from raycluster.batch.job import Refused, RequestShape, to_job
from raycluster.openai_client.lines import EVERY, BadIdError, RefusedLineError, parse_line
from raycluster.serve.asking.result import AskedLine

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", ["custom_id", "id"])
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a", "a"),
        (" a ", " a "),
        ("1.0", "1.0"),
        ("null", "null"),
        ("é\u2028\U0001f600", "é\u2028\U0001f600"),
        ("x" * 1000, "x" * 1000),
        ("\ud800", "\ud800"),
        (7, "7"),
        (0, "0"),
        (-12, "-12"),
        (2**70, str(2**70)),
    ],
)
def test_an_id_is_kept_as_it_is(name: str, value: object, kept: str) -> None:
    line = json.dumps({name: value, "prompt": "hi"}).encode()
    assert parse_line(line).id == kept
    job = to_job(3, line, RequestShape())
    assert isinstance(job, AskedLine) and job.custom_id == kept


@pytest.mark.parametrize("name", ["custom_id", "id"])
@pytest.mark.parametrize("value", ["1.0", "1.5", "1e3", "null", "true", "false", '""', "[]", "{}"])
def test_what_is_no_id_is_refused_and_never_changed(name: str, value: str) -> None:
    with pytest.raises(BadIdError, match=f"{name} is "):
        parse_line(f'{{"{name}": {value}, "prompt": "hi"}}'.encode())


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "mine", "prompt": ""}',
        b'{"custom_id": "mine", "url": "/v1/files", "body": {}}',
        b'{"custom_id": "mine", "body": null}',
        b'{"custom_id": "mine"}',
        b'{"id": "mine", "messages": []}',
        b'{"custom_id": "mine", "prompt": "torn',
        b'{"method": "POST", "custom_id" : "mine", "body": {',
        b'{"custom_id": "mine", "prompt": "na\xefve"}',
        b'{"custom_id": "mine", "prompt": "a"},',
    ],
)
def test_a_refused_line_keeps_its_id(line: bytes) -> None:
    job = to_job(2, line, RequestShape())
    assert isinstance(job, Refused) and job.custom_id == "mine"
    assert job.result.custom_id == "mine"


@pytest.mark.parametrize(
    "line",
    [b'{"prompt": "torn', b'{"prompt": "\\"custom_id\\": \\"no\\"', b"[1]", b'{"custom_id": "a'],
)
def test_a_refused_line_without_an_id_is_called_after_its_place(line: bytes) -> None:
    job = to_job(2, line, RequestShape())
    assert isinstance(job, Refused) and job.custom_id == "line-2"


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
RANKED = {"query": "a", "documents": ["b"]}
AZURE = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("url", "body", "path", "model"),
    [
        ("/chat/completions", {"messages": HI}, CHAT, ""),
        ("/v1/chat/completions/", {"messages": HI}, CHAT, ""),
        ("v1/chat/completions", {"messages": HI}, CHAT, ""),
        ("/openai/v1/chat/completions", {"messages": HI}, CHAT, ""),
        (AZURE, {"messages": HI}, CHAT, "gpt-4o"),
        (AZURE, {"messages": HI, "model": "own"}, CHAT, "own"),
        (None, {"messages": HI}, CHAT, ""),
        ("/openai/deployments/e/embeddings", {"input": ["a"]}, "/v1/embeddings", "e"),
        ("/openai/deployments/o%2Fe/embeddings", {"input": ["a"]}, "/v1/embeddings", "o/e"),
        ("/v1/embeddings", {"messages": HI}, "/v1/embeddings", ""),
        ("/v1/completions", {"prompt": ["p1", "p2"]}, "/v1/completions", ""),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, "/v1/completions", ""),
        ("/v1/completions", {"prompt": ""}, "/v1/completions", ""),
        ("/v1/completions", {"prompt_embeds": "AA=="}, "/v1/completions", ""),
        ("/v1/responses", {"input": "hi"}, RESPONSES, ""),
        ("/responses", {"input": HI}, RESPONSES, ""),
        ("/v1/messages", {"messages": HI, "max_tokens": 4}, MESSAGES, ""),
        ("/v1/score", {"text_1": "a", "text_2": ["b"]}, "/v1/score", ""),
        ("/score", {"queries": "a", "documents": ["b"]}, "/v1/score", ""),
        ("/rerank", RANKED, "/v1/rerank", ""),
        ("/v2/rerank", RANKED, "/v2/rerank", ""),
    ],
)
def test_urls_that_people_have(url: str | None, body: object, path: str, model: str) -> None:
    line = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body}).encode()
    job = to_job(1, line, RequestShape(default_model="first"))
    assert isinstance(job, AskedLine) and job.path == path
    sent = json.loads(job.content)
    assert sent.pop("model") == (model or "first")
    assert {**sent, "model": ""} == {**json.loads(line)["body"], "model": ""}


@pytest.mark.parametrize(
    ("url", "body", "reason"),
    [
        ("https://api.openai.com/v1/chat/completions", {"messages": HI}, "is not served"),
        ("/v1/audio/transcriptions", {"file": "a"}, "is not served"),
        ("/v1/models", {}, "is not served"),
        (["/v1/embeddings"], {"input": "a"}, "is not served"),
        ("http://[", {}, "is not served"),
        ("/v1/responses", {"input": "a", "background": True}, "background"),
        ("/v1/responses", {}, "input is empty"),
        ("/v1/embeddings", {"input": []}, "input is empty"),
        ("/v1/rerank", {"query": "a"}, "documents is empty"),
        ("/v1/messages", {"max_tokens": 4}, "messages is not a non-empty list"),
        ("/v1/completions", {"prompt": []}, "prompt is empty"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt is not a string"),
    ],
)
def test_what_is_no_request_is_said(url: object, body: object, reason: str) -> None:
    line = json.dumps({"custom_id": "a", "url": url, "body": body}).encode()
    with pytest.raises(RefusedLineError, match=reason) as caught:
        parse_line(line, EVERY)
    assert caught.value.id == "a"


@pytest.mark.parametrize("limit", [16, 16.0, "16", "16.0", 0, True, None, 2**60])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_numbers_that_servers_take_pass_as_they_are(name: str, limit: object) -> None:
    for line in ({"messages": HI, name: limit}, {"body": {"messages": HI, name: limit}}):
        body = parse_line(json.dumps(line).encode()).body
        assert body[name] is limit or body[name] == limit


@pytest.mark.parametrize("limit", ["1.5", '"few"', "-1", "-0.5", "NaN", "Infinity", "[1]", '""'])
def test_numbers_that_are_none_are_refused(limit: str) -> None:
    with pytest.raises(RefusedLineError, match="not a number from 0 up"):
        parse_line(f'{{"prompt": "a", "max_tokens": {limit}}}'.encode())


def test_a_prompt_of_messages_is_a_conversation() -> None:
    line = {"custom_id": "a", "prompt": HI, "chosen": [], "source": "x", "seed": 1}
    request = parse_line(json.dumps(line).encode())
    assert (request.id, request.path) == ("a", CHAT)
    assert request.body == {"messages": HI, "seed": 1}


def test_several_prompts_are_one_request_of_completions() -> None:
    job = to_job(1, b'{"prompt": ["p1", "p2"], "output_tokens": 3.0}', RequestShape())
    assert isinstance(job, AskedLine) and job.path == "/v1/completions"
    assert json.loads(job.content) == {"prompt": ["p1", "p2"], "max_tokens": 3}


@pytest.mark.parametrize(
    ("endpoint", "path", "body"),
    [
        ("chat", CHAT, {"messages": HI, "max_tokens": 5}),
        ("completions", "/v1/completions", {"prompt": "hi", "max_tokens": 5}),
        ("responses", RESPONSES, {"input": "hi", "max_output_tokens": 5}),
        ("messages", MESSAGES, {"messages": HI, "max_tokens": 5}),
        ("embeddings", "/v1/embeddings", {"input": "hi"}),
    ],
)
def test_bare_prompts_go_where_they_are_to(endpoint: str, path: str, body: object) -> None:
    for line, limit in ((b'{"prompt": "hi"}', 5), (b'{"prompt": "hi", "max_tokens": 5}', None)):
        job = to_job(1, line, RequestShape(endpoint, limit))
        assert isinstance(job, AskedLine) and job.path == path
        assert json.loads(job.content).items() >= dict(body).items()  # type: ignore[call-overload]


def test_a_line_of_anthropics_batches() -> None:
    line = {"custom_id": "a", "params": {"model": "m", "max_tokens": 3, "messages": HI}}
    job = to_job(1, json.dumps(line).encode(), RequestShape())
    assert isinstance(job, AskedLine) and (job.path, job.custom_id) == (MESSAGES, "a")
    assert json.loads(job.content) == line["params"]
