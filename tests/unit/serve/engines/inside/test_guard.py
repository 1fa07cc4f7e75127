"""What stands before an engine: a stand-in for it, and requests as the gateway sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from raycluster.serve.engines.inside import guard as module
from raycluster.serve.engines.inside.guard import Guard, Rewritten
from raycluster.serve.engines.inside.key import ASKED, NOBODY, OWNER
from raycluster.serve.engines.inside.quotas import Quotas

Headers = Mapping[str, str]
CARDS = {"object": "list", "data": [{"id": "a"}, {"id": "a-law", "parent": "a"}, {"id": "b"}]}


class Engine:
    """Answers with a list of models, in two parts, and notes who has asked."""

    def __init__(self, body: bytes = json.dumps(CARDS).encode(), status: int = 200) -> None:
        self.asked: list[str] = []
        self._body, self._status = body, status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(OWNER.get())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % 9)]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": self._body[9:]})


def ask(app: Any, path: str, headers: Headers, method: str = "GET") -> tuple[int, bytes, Headers]:
    """Return status, body and headers."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(app(scope, None, send))
    start = sent[0]
    told = {k.decode(): v.decode() for k, v in start["headers"]}
    return start["status"], b"".join(m.get("body", b"") for m in sent[1:]), told


def owned(owner: str = "alice", models: str | None = None) -> Headers:
    return {"x-raycluster-owner": owner, **({"x-raycluster-models": models} if models else {})}


@pytest.mark.parametrize("models", [None, "a", "b,a", "a,c"])
def test_a_key_asks_the_models_that_it_is_for(models: str | None) -> None:
    engine = Engine()
    status, body, told = ask(Guard(engine, "a"), "/m/a/v1/x", owned(models=models), "POST")
    assert (status, json.loads(body), engine.asked) == (200, CARDS, ["alice"])
    assert told["x-raycluster-model"] == "a"
    assert OWNER.get() == NOBODY


@pytest.mark.parametrize("models", ["b", "a-law", "b,aa", "A", ","])
@pytest.mark.parametrize("path", ["/v1/completions", "/m/a/v1/completions", "/v1/models/a"])
def test_a_key_asks_no_other_model(models: str, path: str) -> None:
    engine = Engine()
    status, body, _ = ask(Guard(engine, "a"), path, owned(models=models), "POST")
    told = json.loads(body)["error"]
    assert (status, told["code"], engine.asked) == (403, "model_not_found", [])
    assert "`a`" in told["message"]


def test_who_asks_as_anthropic_s_clients_do_is_refused_in_that_form() -> None:
    _, body, _ = ask(Guard(Engine(), "a"), "/m/a/v1/messages", owned(models="b"), "POST")
    assert json.loads(body)["error"]["type"] == "permission_error"


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(b"x-raycluster-models", b"b")]
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": raw}
    asyncio.run(Guard(Engine(), "a")(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_websocket_is_told_why_where_its_server_can_say_it() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(b"x-raycluster-models", b"b")]
    can: dict[str, Any] = {"websocket.http.response": {}}
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": raw, "extensions": can}
    asyncio.run(Guard(Engine(), "a")(scope, None, send))  # type: ignore[arg-type]
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert body["type"] == "websocket.http.response.body"
    assert json.loads(body["body"])["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["a", ""])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/m/a/v1/models"])
@pytest.mark.parametrize(
    ("models", "listed"), [("a", ["a", "a-law"]), ("b", ["b"]), ("c", []), ("a,b", None)]
)
def test_a_list_has_the_models_that_a_key_is_for(
    model: str, path: str, models: str, listed: list[str] | None
) -> None:
    status, body, headers = ask(Guard(Engine(), model), path, owned(models=models))
    assert (status, headers["content-length"]) == (200, str(len(body)))
    assert [card["id"] for card in json.loads(body)["data"]] == (
        listed or ["a", "a-law", "b"] * (listed is None)
    )


@pytest.mark.parametrize("body", [b"null", b"[]", b"{", b'{"data": 5}', b'{"data": [5]}', b"\xff"])
def test_a_list_that_is_none_passes(body: bytes) -> None:
    assert ask(Guard(Engine(body), ""), "/v1/models", owned(models="a"))[1] == body


def test_other_answers_pass_as_they_come() -> None:
    engine = Engine(b'{"error": {"message": "--tool-call-parser"}}', 500)
    seen: list[int] = []

    class Watched(Rewritten):
        async def __call__(self, message: Any) -> None:
            await super().__call__(message)
            seen.append(len(sent))

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(engine({}, None, Watched(send, lambda _: b"")))
    assert seen == [1, 2, 3]


LIMITS = "x-raycluster-limits"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Quotas:
    """Have nothing used by anybody."""
    made = Quotas()
    monkeypatch.setattr(module, "quotas", lambda: made)
    return made


class Reading:
    """An engine that reads its request, as often as it comes, and takes tokens for it."""

    def __init__(self, tokens: int = 0) -> None:
        self.read: list[bytes] = []
        self._tokens = tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.read.append(body)
        if asked := ASKED.get():
            asked.took(self._tokens)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (await receive())["type"].encode()})


def post(
    app: Any, headers: Headers, path: str = "/v1/completions", parts: tuple[bytes, ...] = (b"{}",)
) -> tuple[int, bytes, Headers]:
    """Send a body in parts, after which the client leaves."""
    sent: list[Any] = []
    last = len(parts) - 1
    coming = iter(
        [
            *(
                {"type": "http.request", "body": part, "more_body": n < last}
                for n, part in enumerate(parts)
            ),
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
    asyncio.run(app(scope, receive, send))
    told = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:]), told


@pytest.mark.parametrize("limit", ["tokens_per_minute=50", "tokens_per_day=50"])
@pytest.mark.parametrize("path", ["/v1/completions", "/m/a/v1/responses", "/v1/messages"])
def test_a_key_whose_tokens_are_used_is_told_when_to_come_back(
    fresh: Quotas, limit: str, path: str
) -> None:
    engine = Reading(tokens=60)
    headers = {**owned(), LIMITS: limit}
    status, _, told = post(Guard(engine, "a"), headers, path)
    assert (status, told["x-ratelimit-limit-tokens"]) == (200, "50")
    status, body, told = post(Guard(engine, "a"), headers, path)
    assert (status, len(engine.read)) == (429, 1)
    assert told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == f"{told['retry-after']}s"
    assert int(told["retry-after"]) >= 1
    said = json.loads(body)
    if path.endswith("messages"):
        assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")
    else:
        assert (said["error"]["type"], said["error"]["code"]) == ("tokens", "rate_limit_exceeded")
    for other in ({**headers, "x-raycluster-owner": "bob"}, owned(), {LIMITS: limit}):
        assert post(Guard(engine, "a"), other, path)[0] == 200


@pytest.mark.parametrize(
    "path", ["/v1/messages/count_tokens", "/v1/responses/resp_1/cancel", "/m/a/tokenize"]
)
def test_what_takes_no_tokens_is_not_refused(fresh: Quotas, path: str) -> None:
    headers = {**owned(), LIMITS: "tokens_per_minute=5"}
    post(Guard(Reading(10), "a"), headers)
    assert post(Guard(Reading(), "a"), headers)[0] == 429
    assert post(Guard(Reading(), "a"), headers, path)[0] == 200


@pytest.mark.parametrize("parts", [(b"",), (b'{"max_to', b'kens": 7}'), (b"x" * (2 << 20), b"")])
@pytest.mark.parametrize("limit", ["", "tokens_per_minute=5", "requests_per_minute=5"])
def test_the_engine_gets_the_body_as_it_came(
    fresh: Quotas, parts: tuple[bytes, ...], limit: str
) -> None:
    engine = Reading()
    status, body, _ = post(Guard(engine, "a"), {**owned(), LIMITS: limit}, parts=parts)
    assert (status, body, engine.read) == (200, b"http.disconnect", [b"".join(parts)])


def test_a_websocket_over_the_limit_is_closed(fresh: Quotas) -> None:
    headers = {**owned(), LIMITS: "tokens_per_minute=5"}
    post(Guard(Reading(10), "a"), headers)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": raw}
    asyncio.run(Guard(Reading(), "a")(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1013}]
