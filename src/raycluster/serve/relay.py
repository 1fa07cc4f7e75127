"""Passes requests on to another server, and its answers back as they come.

A replica does so with its own requests: the way of those that HAProxy, which asks the engine's
server itself, did not bring. Serve's proxy takes it for the request that wakes a model. The router
does so with all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from raycluster.serve.engines import Message, Receive, Send
from raycluster.serve.engines.server import Server

CONNECT_S = 10.0
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"expect"}
    | {b"content-length", b"proxy-connection", b"trailer"}
)
OWN = HOP_BY_HOP | {b"date", b"server", b"x-request-id"}
"""What is not passed back: Serve and its HTTP server say it of an answer too."""


class Relay:
    """An ASGI application over an engine's server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = str(scope["path"])
        root = str(scope.get("root_path", "")).rstrip("/")
        path = path[len(root) :] if root and path.startswith(root + "/") else path
        body = await _body(receive)
        url = located(self._server.place.url, path, scope)
        await while_awaited(receive, exchange(self._server.http, scope, send, url, body))


def located(base: str, path: str, scope: Message) -> URL:
    """Return the URL, with a request's query, of which a server reads exactly this path."""
    query = scope.get("query_string", b"").decode("latin-1")
    url = base + quote(path, safe="/:@+,=") + (f"?{query}" if query else "")
    return URL(url, encoded=True)  # or it would be decoded here, and made shorter by its `..`


async def exchange(
    http: aiohttp.ClientSession, scope: Message, send: Send, url: URL, body: bytes
) -> None:
    """Send a request to `url`, and its answer back; one that breaks off breaks off here too.

    Raises aiohttp.ClientError.
    """
    headers = [
        (k.decode("latin-1"), v.decode("latin-1"))
        for k, v in scope["headers"]
        if k.lower() not in HOP_BY_HOP
    ]
    async with http.request(
        scope["method"],
        url,
        data=body,
        headers=headers,
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        auto_decompress=False,
    ) as answer:
        told = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in OWN]
        await send({"type": "http.response.start", "status": answer.status, "headers": told})
        async for chunk in answer.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def while_awaited(receive: Receive, exchanged: Coroutine[Any, Any, None]) -> None:
    """Exchange a request, whose body has been read, until its client goes away."""
    work = asyncio.ensure_future(exchanged)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
