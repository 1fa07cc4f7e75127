"""Lets a request through where its key may ask, and has room left in its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from raycluster.serve.engines.inside.key import (
    ASKED,
    NOBODY,
    OWNER,
    PRIORITY,
    asked_by,
    limits_told,
)
from raycluster.serve.engines.inside.quotas import (
    UNTOLD,
    Asked,
    Limits,
    Refusal,
    expected_of,
    quotas,
)
from raycluster.serve.engines.inside.usage import usage

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

MODEL_HEADER = "x-raycluster-model"
"""What the gateway's log learns of an answer."""

MOST_READ = 1 << 20
"""Bytes of a body that are looked into for how many tokens it asks for."""

_LISTS = re.compile(r"(?:/m/[^/]+)?/v1/models/?")
_MESSAGES = re.compile(r"(?:/m/[^/]+)?/v1/messages(?:/|$)")
_NOT_FOR = "The model `{}` is not one of those that this key may use."
_FREE = re.compile(r".*/(?:count_tokens|cancel|render|tokenize|detokenize)/?")
"""What takes no tokens."""


class Guard:
    """An ASGI application for the keys that may use `model`; "" is a router, which has several."""

    def __init__(self, app: ASGI, model: str) -> None:
        self._app = app
        self._model = model

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        owner, models = asked_by(scope["headers"])
        token = OWNER.set(owner)
        try:
            if models is not None and _LISTS.fullmatch(scope["path"]):
                await self._app(scope, receive, Rewritten(send, lambda x: _only(x, models)))
            elif models is not None and self._model and self._model not in models:
                message = _NOT_FOR.format(self._model)
                told = _error(message, "invalid_request_error", "model_not_found", "model")
                await _refuse(scope, send, 403, told, anthropic="permission_error")
            elif self._model and (scope.get("method") == "POST" or scope["type"] == "websocket"):
                await self._limited(scope, receive, send, owner)
            else:
                await self._app(scope, receive, self._named(send))
        finally:
            OWNER.reset(token)

    async def _limited(self, scope: Message, receive: Receive, send: Send, owner: str) -> None:
        """Let a request through that the limits of its key leave room for."""
        limits = limits_told(scope["headers"])
        asked: Asked | Refusal | None = None
        if owner != NOBODY and not _FREE.fullmatch(scope["path"]):
            receive, expected, most = await _expected(scope, receive, limits)
            asked = quotas().ask(owner, limits, expected, most)
        if isinstance(asked, Refusal):
            told = _error(asked.message, asked.over.kind, "rate_limit_exceeded")
            headers = [(b"retry-after", b"%d" % asked.later), *asked.over.headers]
            await _refuse(scope, send, 429, told, anthropic="rate_limit_error", headers=headers)
            return
        if scope["type"] == "http":
            usage().asked(self._model)
        tokens = ASKED.set(asked), PRIORITY.set(limits.priority)
        try:
            more = asked.headers if asked else ()
            await self._app(scope, receive, self._named(send, more))
        finally:
            ASKED.reset(tokens[0])
            PRIORITY.reset(tokens[1])
            if asked:
                asked.end()

    def _named(self, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> Send:
        """Return a way out by which the gateway's log learns the model, and clients `headers`."""
        if not self._model:
            return send
        more = [(MODEL_HEADER.encode(), self._model.encode()), *headers]

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return named


class Rewritten:
    """A way out for answers: JSON of some statuses is changed, all else passes as it comes."""

    def __init__(
        self, send: Send, change: Callable[[bytes], bytes], statuses: tuple[int, ...] = (200,)
    ) -> None:
        self._send = send
        self._change = change
        self._statuses = statuses
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in self._statuses:
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(b"application/json"):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self._change(self._body)
        start, self._start = self._start, None
        length = (b"content-length", str(len(body)).encode())
        headers = [h for h in start["headers"] if h[0].lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body})


async def _expected(scope: Message, receive: Receive, limits: Limits) -> tuple[Receive, int, int]:
    """Return a way to the same body, the tokens it may take, and the most that one part generates.

    The body is read where tokens are limited alone: vLLM reads it whole before it does anything.
    """
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    json_body = not any(b"multipart/" in kind for kind in kinds)
    if not limits.tokens or not json_body or scope["type"] != "http":
        return receive, UNTOLD, UNTOLD
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    parts = [message.get("body", b"") for message in messages]
    length = sum(map(len, parts))
    expected, most = expected_of(b"".join(parts) if length <= MOST_READ else b"", length)
    read = iter(messages)

    async def again() -> Message:
        return next(read, None) or await receive()

    return again, expected, most


def _error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": kind, "param": param, "code": code}


async def _refuse(
    scope: Message,
    send: Send,
    status: int,
    error: Mapping[str, str | None],
    *,
    anthropic: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Say an error in OpenAI's form, or in Anthropic's, where its kind has another name."""
    begin = "websocket." if scope["type"] == "websocket" else ""
    if begin and "websocket.http.response" not in scope.get("extensions", ()):
        await send({"type": "websocket.close", "code": 1013 if status == 429 else 1008})
        return
    said: dict[str, Any] = {"error": dict(error)}
    if _MESSAGES.match(scope["path"]):
        said = {"type": "error", "error": {"type": anthropic, "message": error["message"]}}
    told = [(b"content-type", b"application/json"), *headers]
    await send({"type": f"{begin}http.response.start", "status": status, "headers": told})
    await send({"type": f"{begin}http.response.body", "body": json.dumps(said).encode()})


def _only(body: bytes, models: frozenset[str]) -> bytes:
    """Return a list of models with those alone that a key is for, and their adapters."""
    try:
        told = json.loads(body)
        cards = told["data"]
        told["data"] = [c for c in cards if {c["id"], c.get("parent")} & models]
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json.dumps(told).encode()
