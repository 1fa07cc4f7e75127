"""What every replica adds around its engine's application: a header, figures and reports."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from raycluster.serve.engines import ASGI, Message, Receive, Send
from raycluster.serve.metrics import Metrics
from raycluster.serve.ready import Readiness, call
from raycluster.serve.settings import AGE_HEADER, EARLIER_PATH, ENGINE_HEADER, ENGINE_PATH

Headers = Sequence[tuple[bytes, bytes]]

METRICS_PATHS = ("/metrics", "/metrics/")
READY_PATH = "/raycluster/ready"
MODELS_PATH = "/v1/models"
CARD_PATH = f"{MODELS_PATH}/"
READY = b'{"ready": true}'
TEXT = b"text/plain; version=0.0.4"

ENDPOINTS = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models"}
    | {"/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/audio/transcriptions", "/tokenize"}
    | {"/v1/audio/translations", "/v2/embed", "/v2/rerank", "/detokenize", "/score", "/rerank"}
    | {"/pooling", "/classify"}
)
"""What the figures name; every other path is "other", so that clients cannot make series."""

UNCOUNTED = frozenset(
    {"/health", "/ping", "/metrics", "/metrics/", "/load", "/version", EARLIER_PATH}
)
"""What machines ask all the time."""

CLIENT_LEFT = 499
KINDS = {404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailableError"}

logger = logging.getLogger("ray.serve")

ROUTE = re.compile(r"/m/[^/]+(?=/)")
"""The route of a model that is one of several."""


class Earlier(Protocol):
    """What tells figures of some seconds ago: how long ago, and their text."""

    def earliest(self) -> tuple[float, bytes | str] | None: ...


class AsgiWrapper:
    """An ASGI application that says which engine answers, counts, and reports on itself.

    It answers below ROUTE too, when it is alone and has the route "/": so every model can be
    reached there always, also while a second one comes or goes.

    It never touches a body: per chunk of a stream it costs one look at a message.
    """

    def __init__(
        self,
        app: ASGI,
        report: Mapping[str, Any],
        metrics: Metrics,
        readiness: Readiness,
        recent: Earlier,
        *,
        figures: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._app = app
        self._engine = str(report["engine"])
        self._header = (ENGINE_HEADER.encode(), self._engine.encode())
        self._report = json.dumps(report).encode()
        self._metrics = metrics
        self._readiness = readiness
        self._recent = recent
        self._figures = figures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # HAProxy takes these to the engine's own server
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _without_route(scope)
        path = _path(scope)
        endpoint = "" if path in UNCOUNTED else endpoint_of(path)
        exchange = Exchange(send, self._header, self._metrics, (self._engine, endpoint))
        if scope["method"] == "GET" and path == ENGINE_PATH:
            await respond(exchange.send, 200, self._report)
        elif scope["method"] == "GET" and path == READY_PATH:
            await self._ready(exchange.send)
        elif scope["method"] == "GET" and path == EARLIER_PATH:
            await self._earlier(exchange.send)
        elif scope["method"] == "GET" and path.startswith(CARD_PATH):
            await self._card(path.removeprefix(CARD_PATH), exchange.send)
        elif self._figures and scope["method"] == "GET" and path in METRICS_PATHS:
            text = (await self._figures()).encode()
            await respond(exchange.send, 200, text, kind=TEXT)
        else:
            await self._serve(scope, receive, exchange)

    async def _serve(self, scope: Message, receive: Receive, exchange: Exchange) -> None:
        unfinished = CLIENT_LEFT
        try:
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            unfinished = 500
            if exchange.status:
                raise
            logger.exception("raycluster: the engine's application failed")
            await refuse(exchange.send, 500, f"{type(error).__name__}: {error}")
        finally:
            exchange.end(unfinished)

    async def _ready(self, send: Send) -> None:
        if problem := await self._readiness.problem():
            await refuse(send, 503, f"the engine is not ready: {problem}")
        else:
            await respond(send, 200, READY)

    async def _card(self, name: str, send: Send) -> None:
        """Answer for a single model, for which vLLM has no path, from the engine's own list."""
        status, body = await call(self._app, MODELS_PATH)
        if status != 200:
            await respond(send, status, body)
            return
        cards = {card["id"]: card for card in json.loads(body)["data"]}
        if name in cards:
            await respond(send, 200, json.dumps(cards[name]).encode())
        else:
            await refuse(send, 404, unknown(name, cards), "model")

    async def _earlier(self, send: Send) -> None:
        if kept := self._recent.earliest():
            age, text = kept
            headers = ((AGE_HEADER.encode(), b"%.3f" % age),)
            body = text if isinstance(text, bytes) else text.encode()
            await respond(send, 200, body, headers, kind=TEXT)
        else:
            await refuse(send, 503, "no metrics recorded yet")


class Exchange:
    """One request's answer on its way out: marks its head, and times its parts."""

    __slots__ = (
        "_awaited",
        "_began",
        "_header",
        "_labels",
        "_metrics",
        "_send",
        "_whole",
        "status",
    )

    def __init__(
        self, send: Send, header: tuple[bytes, bytes], metrics: Metrics, labels: tuple[str, str]
    ) -> None:
        self._began = time.perf_counter()
        self._send = send
        self._header = header
        self._metrics = metrics
        self._labels = labels
        self._awaited = False
        self._whole = False
        self.status = 0

    def send(self, message: Message) -> Awaitable[None]:
        """Pass one message on."""
        kind = message["type"]
        if kind == "http.response.body":
            if self._awaited and message.get("body"):
                self._awaited = False
                self._metrics.first_token(*self._labels, time.perf_counter() - self._began)
            if not message.get("more_body"):
                self._whole = True
        elif kind == "http.response.start":
            self._start(message)
        return self._send(message)

    def _start(self, message: Message) -> None:
        headers = message.get("headers", ())
        self.status = message["status"]
        self._awaited = bool(self._labels[1]) and any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        message["headers"] = [*headers, self._header]

    def end(self, unfinished: int) -> None:
        """Count the request, with this status if its answer was not finished."""
        if not self._labels[1]:
            return
        status = self.status if self._whole else unfinished
        self._metrics.ended(*self._labels, status, time.perf_counter() - self._began)


def unknown(name: object, there: Iterable[str]) -> str:
    """Return what is said of a model that is not among those that are there."""
    return f"The model `{name}` does not exist. There are: {', '.join(sorted(there))}."


def endpoint_of(path: str) -> str:
    """Return what the figures call this path."""
    if path in ENDPOINTS:
        return path
    return "/v1/models" if path.startswith("/v1/models/") else "other"


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Headers = (),
    *,
    kind: bytes = b"application/json",
) -> None:
    """Send a whole response; `kind` is its content type."""
    own = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    start = {"type": "http.response.start", "status": status, "headers": [*own, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, message: str, param: str | None = None) -> None:
    """Send an error in OpenAI's form, with the time to wait where a later try may help."""
    kind = KINDS.get(status, "BadRequestError")
    error = {"message": message, "type": kind, "param": param, "code": status}
    later = ((b"retry-after", b"1"),) if status == 503 else ()
    await respond(send, status, json.dumps({"error": error}).encode(), later)


def _without_route(scope: Message) -> Message:
    """Return the scope without the model's route in its path, where Serve did not route by it."""
    own = ROUTE.match(str(scope["path"]))
    if own is None or str(scope.get("root_path", "")).rstrip("/"):
        return scope
    path = str(scope["path"])[own.end() :]
    return {**scope, "path": path, "raw_path": path.encode()}


def _path(scope: Message) -> str:
    """Return the path below Serve's route prefix, which Serve passes as `root_path`."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path
