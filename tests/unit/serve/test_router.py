from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from raycluster.serve.router import MOST_BODY, Router


class Upstream:
    """Two models behind one port, as Serve's proxy has them; `let_go` releases a held stream."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.seen: list[dict[str, Any]] = []
        self.used: list[object] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/m/{model}/v1/models", self.models)
        app.router.add_get("/m/{model}/raycluster/engine", self.engine)
        app.router.add_post("/m/{model}/v1/completions", self.completions)
        app.router.add_route("*", "/m/{model}/{path:.*}", self.other)
        return app

    async def other(self, request: web.Request) -> web.Response:
        model, path = request.match_info["model"], request.match_info["path"]
        self.seen.append({"at": model, "path": f"/{path}"})
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        if request.match_info["model"] == "down":
            return web.Response(status=503)
        return web.json_response({"data": [{"id": request.match_info["model"]}]})

    async def engine(self, request: web.Request) -> web.Response:
        return web.json_response({"engine": "vllm"})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append({"at": request.match_info["model"], "query": request.query_string})
        if body.get("prompt") == "too much":
            return web.Response(status=429, text="no room", headers={"retry-after": "3"})
        if body.get("prompt") == "once":
            assert request.transport is not None
            if request.transport in self.used:
                request.transport.abort()  # as it may end just when it is used again
            self.used.append(request.transport)
        if not body.get("stream"):
            return web.json_response(
                {"said": body["model"]}, headers={"x-raycluster-engine": "vllm"}
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if body.get("break"):
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write(b"data: last\n\n")
        return response


class Call:
    """One request to an ASGI application: what it sends arrives in `sent`."""

    def __init__(
        self,
        router: Router,
        method: str,
        path: str,
        body: bytes = b"",
        query: bytes = b"",
        *,
        origin: str = "",
    ) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.received.put_nowait({"type": "http.request", "body": body})
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query,
            "headers": [(b"content-type", b"application/json"), (b"host", b"x")],
        }  # fmt: skip
        if origin:
            scope["headers"].append((b"origin", origin.encode()))  # type: ignore[attr-defined]
        self.task = asyncio.ensure_future(router(scope, self.received.get, self.sent.put))

    def hang_up(self) -> None:
        self.received.put_nowait({"type": "http.disconnect"})

    async def whole(self) -> tuple[int, dict[bytes, bytes], bytes]:
        await self.task
        messages = [self.sent.get_nowait() for _ in range(self.sent.qsize())]
        body = b"".join(m.get("body", b"") for m in messages[1:])
        return messages[0]["status"], dict(messages[0]["headers"]), body


@asynccontextmanager
async def running(upstream: Upstream) -> AsyncIterator[Router]:
    runner = web.AppRunner(upstream.application(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    router = Router({"a/b": "/m/one", "c": "/m/two"}, f"http://127.0.0.1:{port}")
    try:
        yield router
    finally:
        upstream.let_go.set()
        await router.close()
        await runner.cleanup()


def on(test: Callable[[Upstream, Router], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        upstream = Upstream()
        async with running(upstream) as router:
            await asyncio.wait_for(test(upstream, router), 20)

    asyncio.run(main())


def asking(model: object, **more: object) -> bytes:
    return json.dumps({"model": model, "prompt": "x", **more}).encode()


DEEP = b'{"a": ' + b"[" * 100_000
"""JSON that goes deeper than Python reads it."""


def test_a_request_goes_to_its_model() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        status, headers, body = await Call(
            router, "POST", "/v1/completions", asking("a/b"), b"x=1"
        ).whole()
        assert (status, json.loads(body)) == (200, {"said": "a/b"})
        assert headers[b"x-raycluster-engine"] == b"vllm"
        assert (upstream.seen[0]["at"], upstream.seen[0]["query"]) == ("one", "x=1")

    on(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [(asking("nope"), 404), *((b, 400) for b in (asking(None), asking(3), DEEP, b"[]", b"{", b""))],
)
def test_an_unknown_model_is_refused_with_what_there_is(body: bytes, status: int) -> None:
    async def test(_: Upstream, router: Router) -> None:
        found, _headers, answer = await Call(router, "POST", "/v1/completions", body).whole()
        error = json.loads(answer)["error"]
        assert (found, error["code"], error["param"]) == (status, status, "model")
        assert "a/b, c" in error["message"]

    on(test)


@pytest.mark.parametrize(
    ("method", "path", "query", "at"),
    [
        ("GET", "/version", b"", "one"),
        ("OPTIONS", "/v1/completions", b"", "one"),
        ("DELETE", "/v1/completions", b"", "one"),
        ("GET", "/v1/models/c", b"", "two"),
        ("GET", "/metrics", b"model=c", "two"),
        ("POST", "/v1/start", b"model=a%2Fb", "one"),
    ],
)
def test_what_names_no_model_goes_to_the_first(
    method: str, path: str, query: bytes, at: str
) -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        status, *_ = await Call(router, method, path, b"", query).whole()
        assert (status, upstream.seen) == (200, [{"at": at, "path": path}])

    on(test)


@pytest.mark.parametrize("path", ["/metrics", "/load"])
def test_the_figures_of_one_are_not_those_of_all(path: str) -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        status, _headers, answer = await Call(router, "GET", path).whole()
        assert (status, json.loads(answer)["error"]["param"]) == (400, "model")
        assert upstream.seen == []

    on(test)


def test_who_sleeps_is_not_woken_for_what_names_no_model() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        routes = {"a": "/m/one", "b": "/m/two"}
        for asleep, status in ((["a"], 200), (["a", "b"], 400)):
            drowsy = Router(routes, router._upstream, asleep=asleep)
            found, *_ = await Call(drowsy, "GET", "/version").whole()
            await drowsy.close()
            assert found == status
        assert [seen["at"] for seen in upstream.seen] == ["two"]

    on(test)


def test_a_websocket_that_names_no_model_is_closed() -> None:
    async def test(_: Upstream, router: Router) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await router({"type": "websocket", "path": "/v1/realtime"}, asyncio.Queue().get, send)
        assert sent == [{"type": "websocket.close"}]

    on(test)


def test_a_request_for_a_route_that_no_model_has_does_not_go_round() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        call = Call(router, "POST", "/m/one/v1/completions", asking("a/b"))
        status, _headers, body = await call.whole()
        assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")
        assert upstream.seen == []

    on(test)


def test_a_router_that_waits_for_its_way_in_can_be_asked() -> None:
    async def test(_: Upstream, router: Router) -> None:
        status, _headers, _body = await Call(router, "GET", "/m/router/health").whole()
        assert status == 200

    on(test)


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [(["*"], "*"), (["https://a"], "https://a"), (["https://b"], None), ([], None)],
)
def test_pages_read_what_the_router_says_and_what_models_say_is_theirs(
    origins: list[str], allowed: str | None
) -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        there = Router({"a/b": "/m/one"}, router._upstream, origins=origins)
        for method, path, body in (
            ("GET", "/v1/models", b""),
            ("GET", "/health", b""),
            ("POST", "/v1/completions", asking("nope")),
            ("POST", "/v1/completions", b"{}"),
        ):
            for origin in ("https://a", ""):
                _, headers, _ = await Call(there, method, path, body, origin=origin).whole()
                wanted = allowed.encode() if allowed and origin else None
                assert headers.get(b"access-control-allow-origin") == wanted
                assert (headers.get(b"vary") == b"Origin") == (wanted == b"https://a")
        answer = Call(there, "POST", "/v1/completions", asking("a/b"), origin="https://a")
        assert b"access-control-allow-origin" not in (await answer.whole())[1]
        await there.close()

    on(test)


def test_models_are_merged() -> None:
    async def test(_: Upstream, router: Router) -> None:
        status, _headers, body = await Call(router, "GET", "/v1/models").whole()
        assert status == 200
        assert [card["id"] for card in json.loads(body)["data"]] == ["one", "two"]

    on(test)


def test_a_model_that_is_down_is_still_listed() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        down = Router({"gone": "/m/down"}, router._upstream)
        _status, _headers, body = await Call(down, "GET", "/v1/models").whole()
        await down.close()
        assert [card["id"] for card in json.loads(body)["data"]] == ["gone"]

    on(test)


def test_adapters_are_names_of_their_model_and_who_may_sleep_is_left_alone() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        routes = {"a": "/m/a", "tuned": "/m/a", "b": "/m/b", "odd": "/m/b"}
        adapters = {"tuned": "a", "odd": "b"}
        several = Router(routes, router._upstream, adapters=adapters, asleep=["b"])
        _status, _headers, body = await Call(several, "GET", "/v1/models").whole()
        # The first answers for itself (as `Upstream` does), the second is not asked.
        assert [card["id"] for card in json.loads(body)["data"]] == ["a", "b", "odd"]
        _status, _headers, body = await Call(several, "GET", "/raycluster/engine").whole()
        assert json.loads(body) == {"models": {"a": {"engine": "vllm"}, "b": None}}
        await Call(several, "POST", "/v1/completions", asking("tuned")).whole()
        await Call(several, "POST", "/v1/completions", asking("odd")).whole()
        assert [seen["at"] for seen in upstream.seen] == ["a", "b"]
        await several.close()

    on(test)


def test_what_a_full_model_answers_is_passed_on() -> None:
    async def test(_: Upstream, router: Router) -> None:
        full = {"model": "c", "prompt": "too much"}
        call = Call(router, "POST", "/v1/completions", json.dumps(full).encode())
        status, headers, body = await call.whole()
        assert (status, headers[b"retry-after"], body) == (429, b"3", b"no room")

    on(test)


def test_engines_are_reported_by_model() -> None:
    async def test(_: Upstream, router: Router) -> None:
        _status, _headers, body = await Call(router, "GET", "/raycluster/engine").whole()
        assert json.loads(body) == {"models": {"a/b": {"engine": "vllm"}, "c": {"engine": "vllm"}}}

    on(test)


def test_a_stream_is_not_held_back() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        call = Call(router, "POST", "/v1/completions", asking("c", stream=True))
        assert (await call.sent.get())["status"] == 200
        assert (await call.sent.get())["body"] == b"data: first\n\n"
        assert not call.task.done()
        upstream.let_go.set()
        assert (await call.sent.get())["body"] == b"data: last\n\n"
        await call.task

    on(test)


def test_a_client_that_hangs_up_ends_the_request_upstream() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        call = Call(router, "POST", "/v1/completions", asking("c", stream=True))
        await call.sent.get()
        await call.sent.get()
        call.hang_up()
        await upstream.cancelled.wait()
        await call.task

    on(test)


def test_a_stream_that_breaks_upstream_does_not_end_well() -> None:
    async def test(upstream: Upstream, router: Router) -> None:
        call = Call(router, "POST", "/v1/completions", asking("c", stream=True, **{"break": True}))
        await call.sent.get()
        await call.sent.get()
        upstream.let_go.set()
        with pytest.raises(Exception, match=r"payload|transfer|reset|closed"):
            await call.task

    on(test)


def test_no_request_meets_the_end_of_a_connection_that_rests() -> None:
    async def test(_: Upstream, router: Router) -> None:
        for _time in range(3):
            body = asking("a/b", prompt="once")
            status, _headers, _body = await Call(router, "POST", "/v1/completions", body).whole()
            assert status == 200

    on(test)


def test_no_upstream_is_503() -> None:
    async def test(_: Upstream, __: Router) -> None:
        alone = Router({"a": "/m/a"}, "http://127.0.0.1:1")
        status, headers, body = await Call(alone, "POST", "/v1/completions", asking("a")).whole()
        await alone.close()
        assert (status, json.loads(body)["error"]["type"]) == (503, "ServiceUnavailableError")
        assert headers[b"retry-after"] == b"1"

    on(test)


def test_a_body_that_is_too_long_is_refused() -> None:
    async def test(_: Upstream, router: Router) -> None:
        body = b"x" * (MOST_BODY + 1)
        status, _headers, _body = await Call(router, "POST", "/v1/completions", body).whole()
        assert status == 413

    on(test)
