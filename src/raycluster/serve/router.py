"""One way in for several models: reads which model a request names, and passes it on.

Serve's proxy sends "/" here; the router sends to the models' own routes on the same proxy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qs

import aiohttp

from raycluster.serve.asgi_wrapper import (
    CARD_PATH,
    MODELS_PATH,
    READY,
    READY_PATH,
    refuse,
    respond,
    unknown,
)
from raycluster.serve.engines import Message, Receive, Send
from raycluster.serve.relay import exchange, located, while_awaited
from raycluster.serve.settings import ENGINE_PATH, WAITING_ROUTE

MOST_BODY = 64 * 1024 * 1024
READY_S = 15.0

OF_ONE = frozenset({"/metrics", "/load", "/server_info", "/tokenizer_info"})
"""What engines tell of their own model, so that the first one's answer would mislead."""

HEALTH = ("/health", "/ping", "/-/healthz")
HOW = "name it in the body, or as `?model=NAME` in the URL"


class Router:
    """An ASGI application over `routes` (name -> path prefix) at the URL `upstream`.

    `adapters` tells which names are further ones of a model (adapter or alias -> model). What lists
    models asks none of those `asleep`: that would start their replicas. Web pages of `origins` may
    read what the router says itself; models say so for their own answers.
    """

    def __init__(
        self,
        routes: Mapping[str, str],
        upstream: str,
        adapters: Mapping[str, str] | None = None,
        asleep: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self._routes = dict(routes)
        self._adapters = dict(adapters or {})
        self._models = tuple(name for name in routes if name not in self._adapters)
        self._asleep = frozenset(asleep)
        self._origins = frozenset(origins)
        self._upstream = upstream.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._created = int(time.time())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # HAProxy lets none come here
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await _lifespan(scope, receive, send)
            return
        path = str(scope["path"]).removeprefix(WAITING_ROUTE)
        own = self._readable(scope, send)
        if path in HEALTH:
            await respond(own, 200, b"{}")
        elif path.startswith("/m/"):  # no model has it now: it would come back here for ever
            await refuse(own, 404, f"there is no model at {path}")
        elif scope["method"] != "GET" or not await self._told(path, own):
            body = await _body(receive)
            if body is None:
                await refuse(own, 413, f"the body is longer than {MOST_BODY} bytes")
            elif route := await self._route(path, scope, body, own):
                exchange = self._exchange(scope, send, own, route + path, body)
                await while_awaited(receive, exchange)  # ends both when the client goes away

    def _readable(self, scope: Message, send: Send) -> Send:
        """Return a way out for the router's own answers, by which a browser lets its page read."""
        origin = next((v for name, v in scope["headers"] if name.lower() == b"origin"), None)
        if origin is None or not self._origins & {"*", origin.decode("latin-1")}:
            return send
        everybody = "*" in self._origins
        more = [(b"access-control-allow-origin", b"*" if everybody else origin)]
        more += [] if everybody else [(b"vary", b"Origin")]

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        return readable

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _told(self, path: str, send: Send) -> bool:
        """Answer for all models, and tell whether that was asked."""
        if path == MODELS_PATH:
            cards = await asyncio.gather(*map(self._cards, self._models))
            await _json(send, 200, {"object": "list", "data": [c for part in cards for c in part]})
        elif path == READY_PATH:
            await self._ready(send)
        elif path == ENGINE_PATH:
            reports = await asyncio.gather(*(self._fetch(n, path) for n in self._models))
            await _json(send, 200, {"models": dict(zip(self._models, reports, strict=True))})
        else:
            return False
        return True

    async def _route(self, path: str, scope: Message, body: bytes, send: Send) -> str:
        """Return the route of the model that a request names, or refuse it and return "".

        Where none need be named, all models answer alike, and the first that is awake does.
        """
        try:
            model = await named(path, scope, body)
        except ValueError as error:
            await refuse(send, 400, str(error))
            return ""
        awake = next((name for name in self._models if name not in self._asleep), None)
        if model is None and awake and scope["method"] != "POST" and path not in OF_ONE:
            model = awake
        if model is None:
            there = ", ".join(sorted(self._routes))
            told = f"The request names no model: {HOW}. There are: {there}."
            await refuse(send, 400, told, "model")
        elif model not in self._routes:
            await refuse(send, 404, unknown(model, self._routes), "model")
        else:
            return self._routes[model]
        return ""

    async def _ready(self, send: Send) -> None:
        """Answer 200 when every model can answer; one that may sleep is not woken to be asked."""
        awake = [name for name in self._models if name not in self._asleep]
        answers = await asyncio.gather(*(self._fetch(n, READY_PATH, READY_S) for n in awake))
        if late := [n for n, a in zip(awake, answers, strict=True) if a is None]:
            await refuse(send, 503, f"not ready: {', '.join(late)}")
        else:
            await respond(send, 200, READY)

    async def _cards(self, name: str) -> list[Any]:
        """Return what the model says of itself, or what we know while it does not answer."""
        answer = await self._fetch(name, "/v1/models")
        if isinstance(answer, dict) and isinstance(answer.get("data"), list):
            return list(answer["data"])
        names = [name, *(adapter for adapter, of in self._adapters.items() if of == name)]
        card = {"object": "model", "created": self._created, "owned_by": "raycluster"}
        return [{"id": each, **card} for each in names]

    async def _fetch(self, name: str, path: str, seconds: float = 5.0) -> object:
        if name in self._asleep:
            return None
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            url = self._upstream + self._routes[name] + path
            async with self._client().get(url, timeout=timeout) as response:
                return await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _exchange(
        self, scope: Message, send: Send, own: Send, path: str, body: bytes
    ) -> None:
        """Send the request on and its answer back."""
        try:
            url = located(self._upstream, path, scope)
            await exchange(self._client(), scope, send, url, body)
        except aiohttp.ClientConnectorError as error:
            await refuse(own, 503, f"the model cannot be reached: {error}")

    def _client(self) -> aiohttp.ClientSession:
        """Return the session, made on the event loop that serves.

        Its connections do not rest: HAProxy closes those when replicas change, and a POST that
        meets the end of one is not sent again.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


async def _body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MOST_BODY:
            return None
    return b"".join(parts)


async def named(path: str, scope: Message, body: bytes) -> str | None:
    """Return the model that a request names: in its path, its query, a form, or JSON.

    Raises ValueError for a form that cannot be read.
    """
    if path.startswith(CARD_PATH):
        return path.removeprefix(CARD_PATH)
    headers = {name.lower(): value for name, value in scope["headers"]}
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data"):
        model = await _in_form(scope, body)
    else:
        model = _in_json(body)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return model or query.get("model", [None])[0]


def _in_json(body: bytes) -> str | None:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):  # there may be none at all
        return None
    model = told.get("model") if isinstance(told, dict) else None
    return model if isinstance(model, str) else None


async def _in_form(scope: Message, body: bytes) -> str | None:
    from starlette.requests import Request

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    try:
        async with Request(scope, receive).form() as form:
            model = form.get("model")
    except Exception as error:  # its parsers raise errors of three packages
        raise ValueError(f"the form cannot be read: {error!r}") from error
    return model if isinstance(model, str) else None


async def _lifespan(scope: Message, receive: Receive, send: Send) -> None:
    while scope["type"] == "lifespan":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _json(send: Send, status: int, value: object) -> None:
    await respond(send, status, json.dumps(value).encode())
