from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from raycluster.serve.asgi_wrapper import AsgiWrapper, endpoint_of, respond
from raycluster.serve.engines import ASGI, Message, Receive, Send
from raycluster.serve.metrics import Metrics, samples
from raycluster.serve.metrics_history import MetricsHistory
from raycluster.serve.ready import Readiness, questions

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def engine(*chunks: bytes, headers: Any = (), fails: Exception | None = None) -> ASGI:
    """Return an application that answers with these chunks; None of them: it never begins."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if chunks:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if fails:
            raise fails
        if chunks:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


class Asked:
    """A front, what it sent, and its figures."""

    def __init__(self, app: ASGI) -> None:
        self.registry = CollectorRegistry()
        readiness = Readiness(app, questions("m"))
        metrics = Metrics("m", self.registry)
        self.recent = MetricsHistory(self.registry)
        self.front = AsgiWrapper(app, {"engine": "vllm"}, metrics, readiness, self.recent)
        self.sent: list[Message] = []

    def ask(self, path: str, method: str = "POST", root: str = "") -> Asked:
        async def send(message: Message) -> None:
            self.sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "method": method, "path": path, "root_path": root}
        asyncio.run(self.front(scope, receive, send))
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> Any:
        return json.loads(b"".join(m.get("body", b"") for m in self.sent))

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        found = (s for s in samples(self.registry) if s[0] == f"raycluster_{name}")
        return {tuple(v for k, v in s[2].items() if k != "model"): s[3] for s in found}


def test_every_answer_names_the_engine() -> None:
    asked = Asked(engine(b"{}", headers=[(b"a", b"b")])).ask("/v1/completions")
    assert asked.sent[0]["headers"] == [(b"a", b"b"), (b"x-raycluster-engine", b"vllm")]


def test_a_stream_s_first_event_is_timed_once() -> None:
    asked = Asked(engine(b"", b"data: a\n\n", b"data: b\n\n", headers=EVENTS))
    asked.ask("/m/x/v1/chat/completions", root="/m/x")
    key = ("vllm", "/v1/chat/completions")
    assert asked.counted("time_to_first_token_seconds_count") == {key: 1}
    assert asked.counted("request_duration_seconds_count") == {key: 1}
    assert asked.counted("requests_total") == {(*key, "200"): 1}


def test_an_answer_in_one_piece_has_no_first_token() -> None:
    asked = Asked(engine(b"{}")).ask("/v1/completions")
    assert asked.counted("time_to_first_token_seconds_count") == {}
    assert asked.counted("requests_total") == {("vllm", "/v1/completions", "200"): 1}


def test_a_failure_before_the_answer_is_told_in_openai_s_form() -> None:
    asked = Asked(engine(fails=ValueError("broken"))).ask("/v1/completions")
    assert asked.status == 500
    assert asked.body["error"] == {
        "message": "ValueError: broken",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert asked.counted("requests_total") == {("vllm", "/v1/completions", "500"): 1}


def test_a_failure_within_the_answer_breaks_it() -> None:
    asked = Asked(engine(b"half", fails=ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        asked.ask("/v1/completions")
    assert asked.counted("requests_total") == {("vllm", "/v1/completions", "500"): 1}


def test_an_answer_without_its_end_had_lost_its_client() -> None:
    async def left(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})

    asked = Asked(left).ask("/v1/completions")
    assert asked.counted("requests_total") == {("vllm", "/v1/completions", "499"): 1}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/ping"])
def test_what_machines_ask_is_not_counted(path: str) -> None:
    assert Asked(engine(b"{}")).ask(path, "GET").counted("requests_total") == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/completions", "/v1/completions"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/org/name", "/v1/models"),
        ("/v1/modelsx", "other"),
        ("/../../etc/passwd", "other"),
        ("/", "other"),
    ],
)
def test_clients_cannot_make_series(path: str, name: str) -> None:
    assert endpoint_of(path) == name


def test_the_report_and_readiness_are_answered_by_the_front() -> None:
    asked = Asked(engine(b"{}")).ask("/raycluster/engine", "GET")
    assert asked.body == {"engine": "vllm"}
    assert Asked(engine(b"{}")).ask("/raycluster/ready", "GET").body == {"ready": True}
    broken = Asked(engine(fails=ValueError("broken"))).ask("/raycluster/ready", "GET")
    assert broken.status == 503
    assert broken.body["error"]["message"] == "the engine is not ready: ValueError: broken"
    assert broken.counted("requests_total") == {}


def test_what_was_counted_before_is_told_with_its_age() -> None:
    asked = Asked(engine(b"{}"))
    assert asked.ask("/raycluster/earlier", "GET").status == 503
    asked.sent.clear()
    asked.ask("/v1/completions").recent.keep()
    asked.ask("/v1/completions").sent.clear()
    asked.ask("/raycluster/earlier", "GET")
    headers = dict(asked.sent[0]["headers"])
    assert 0 <= float(headers[b"x-raycluster-age"]) < 60
    text = b"".join(m.get("body", b"") for m in asked.sent).decode()
    assert int(headers[b"content-length"]) == len(text)
    ended = 'endpoint="/v1/completions",engine="vllm",model="m",status="200"'
    assert f"raycluster_requests_total{{{ended}}} 1.0" in text
    assert asked.counted("requests_total") == {("vllm", "/v1/completions", "200"): 2}


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with the path that arrived."""
    await respond(send, 200, json.dumps({"path": scope["path"]}).encode())


@pytest.mark.parametrize(
    ("path", "root_path", "arrives"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/m/a/v1/models", "", "/v1/models"),
        ("/m/a/v1/models", "/", "/v1/models"),
        ("/m/a", "", "/m/a"),
        ("/metrics", "", "/metrics"),
        ("/m/a/v1/models", "/m/a", "/m/a/v1/models"),  # Serve's own way: the engine takes it off
    ],
)
def test_a_model_alone_answers_at_its_own_route_too(
    path: str, root_path: str, arrives: str
) -> None:
    asked = Asked(echo).ask(path, "GET", root_path)
    assert asked.body == {"path": arrives}
    assert dict(asked.sent[0]["headers"])[b"x-raycluster-engine"] == b"vllm"


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/raycluster/engine", ""),
        ("/m/a/raycluster/engine", ""),
        ("/m/a/raycluster/engine", "/m/a"),
    ],
)
def test_the_report_is_there_by_every_way(path: str, root_path: str) -> None:
    assert Asked(echo).ask(path, "GET", root_path).body == {"engine": "vllm"}


@pytest.mark.parametrize(("name", "status"), [("org/a", 200), ("b", 200), ("c", 404)])
def test_a_single_model_is_told_from_the_engine_s_list(name: str, status: int) -> None:
    cards = [{"id": "org/a", "x": 1}, {"id": "b"}]
    asked = Asked(engine(json.dumps({"data": cards}).encode()))
    asked.ask(f"/m/x/v1/models/{name}", "GET", root="/m/x")
    assert asked.status == status
    assert asked.body in cards if status == 200 else "org/a" in asked.body["error"]["message"]


def test_a_list_that_fails_is_told_as_it_is() -> None:
    async def full(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, 503, b'{"error": {}}')

    assert Asked(full).ask("/v1/models/a", "GET").status == 503


def test_a_websocket_is_closed() -> None:
    asked = Asked(engine())

    async def send(message: Message) -> None:
        asked.sent.append(message)

    asyncio.run(asked.front({"type": "websocket", "path": "/v1/realtime"}, send, send))  # type: ignore[arg-type]
    assert asked.sent == [{"type": "websocket.close"}]
