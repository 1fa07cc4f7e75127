"""The app with its engine replaced by a sleep: what is left is the way in. For benchmarks alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raycluster.serve.asgi_wrapper import AsgiWrapper
from raycluster.serve.bind_addresses import listen_privately
from raycluster.serve.engines import ASGI
from raycluster.serve.metrics import Metrics
from raycluster.serve.metrics_history import MetricsHistory
from raycluster.serve.ready import Readiness


def build(args: Mapping[str, Any]) -> Application:
    """Return an application whose answers take `args["seconds"]`."""
    return Sleeper.bind(args["seconds"])  # type: ignore[attr-defined]


@serve.deployment(name="Model")
@serve.ingress()
class Sleeper:
    """One replica."""

    async def __init__(self, seconds: float) -> None:  # type: ignore[misc]
        listen_privately(ray.util.get_node_ip_address())
        self._seconds = seconds

    async def __serve_build_asgi_app__(self) -> ASGI:
        route = Route("/{path:path}", self._answer)
        app = Starlette(routes=[route])
        ready = Readiness(app, [("/v1/completions", {})])
        return AsgiWrapper(app, {"engine": "sleep"}, Metrics("sleep"), ready, MetricsHistory())

    async def _answer(self, _: Request) -> JSONResponse:
        await asyncio.sleep(self._seconds)
        return JSONResponse({})
