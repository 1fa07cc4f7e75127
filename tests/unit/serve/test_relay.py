from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from raycluster.serve.engines.server import Place, Server
from raycluster.serve.relay import Relay
from tests.ports import free_ports


class Engine:
    """What answers in the place of an engine's server."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, str(request.rel_url), await request.read()))
        assert request.headers["x-own"] == "1"
        response: web.StreamResponse
        if request.path == "/moved":
            response = web.Response(status=307, headers={"location": "http://elsewhere/"})
        elif request.path == "/breaks":
            response = web.StreamResponse(headers={"content-length": "100"})
            await response.prepare(request)
            await response.write(b"part")
            assert request.transport is not None
            request.transport.abort()
        elif request.path == "/lasts":
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        else:
            response = web.Response(
                status=418, body=b"tea", headers={"x-told": "yes", "x-request-id": "a"}
            )
        return response


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, Engine]]:
    """Yield a relay, and what it leads to."""
    engine = Engine()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", engine.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    [port] = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server = Server((), {}, Place("127.0.0.1", port))
    try:
        yield Relay(server), engine
    finally:
        await server.stop()
        await runner.cleanup()


async def asked(relay: Relay, path: str, *, left: asyncio.Event | None = None) -> list[Any]:
    """POST in two parts and return the messages of the answer."""
    parts = [
        {"type": "http.request", "body": b"on", "more_body": True},
        {"type": "http.request", "body": b"e"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if parts:
            return parts.pop(0)
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if left is not None:
            left.set()

    scope = {
        **{"type": "http", "method": "POST", "path": path, "query_string": b"a=1"},
        **{"root_path": "/m/x", "headers": [(b"host", b"h"), (b"x-own", b"1")]},
    }
    await relay(scope, receive, send)
    return sent


def test_requests_and_answers_pass_whole() -> None:
    async def run() -> None:
        async with relayed() as (relay, engine):
            start, *body, end = await asked(relay, "/m/x/v1/completions")
            assert engine.seen == [("POST", "/v1/completions?a=1", b"one")]
            assert start["status"] == 418
            assert (b"x-told", b"yes") in start["headers"]
            assert not {b"date", b"server", b"x-request-id"} & {k for k, _ in start["headers"]}
            assert b"".join(part["body"] for part in body) == b"tea"
            assert not end.get("more_body")

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/v1/%2e%2e/x", "/v1/../x", "/v1/a%2Fb", "/v1/ä b", "/v1/a;b?#"])
def test_an_engine_reads_the_path_that_was_read_here(path: str) -> None:
    async def run() -> None:
        async with relayed() as (relay, engine):
            await asked(relay, f"/m/x{path}")
            [(_, url, _)] = engine.seen
            assert unquote(url.partition("?")[0]) == path

    asyncio.run(run())


def test_a_redirection_is_the_clients_to_follow() -> None:
    async def run() -> None:
        async with relayed() as (relay, engine):
            start, *_ = await asked(relay, "/moved")
            assert (start["status"], len(engine.seen)) == (307, 1)
            assert (b"location", b"http://elsewhere/") in start["headers"]

    asyncio.run(run())


def test_an_answer_that_breaks_off_breaks_off_here_too() -> None:
    async def run() -> None:
        async with relayed() as (relay, _):
            with pytest.raises(Exception, match=r"(?i)payload|disconnected"):
                await asked(relay, "/breaks")

    asyncio.run(run())


def test_a_client_that_leaves_is_seen_by_the_engine() -> None:
    async def run() -> None:
        async with relayed() as (relay, engine):
            await asked(relay, "/lasts", left=asyncio.Event())
            await asyncio.wait_for(engine.left.wait(), 30)

    asyncio.run(run())
