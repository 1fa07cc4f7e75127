"""The Serve application around the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from raycluster.serve.engines import ASGI
from raycluster.serve.router import Router

ONGOING = 4096
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""The router calls the proxy of the node that it runs on, which is the head's."""


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for what `settings.applications` put into `args`."""
    return RouterReplica.bind(args["routes"], args["upstream"])  # type: ignore[attr-defined]


@serve.deployment(
    name="Router",
    max_ongoing_requests=ONGOING,
    max_queued_requests=ONGOING,
    ray_actor_options=ON_HEAD,
    graceful_shutdown_timeout_s=120,
)
@serve.ingress()
class RouterReplica:
    """One replica."""

    async def __init__(self, routes: Mapping[str, str], upstream: str) -> None:  # type: ignore[misc]
        self._router = Router(routes, upstream)

    async def __serve_build_asgi_app__(self) -> ASGI:
        return self._router

    async def __del__(self) -> None:
        router = getattr(self, "_router", None)
        if router is not None:
            await router.close()
