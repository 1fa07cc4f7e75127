"""The Serve application around the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from raycluster.serve.bind_addresses import listen_privately
from raycluster.serve.engines import ASGI
from raycluster.serve.engines.inside.guard import Guard
from raycluster.serve.router import Router
from raycluster.serve.settings import DRAIN_S

ONGOING = 4096
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""The router calls the proxy of the node that it runs on, which is the head's."""


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for what `settings.applications` put into `args`."""
    told = {name: args[name] for name in ("routes", "upstream", "adapters", "asleep", "origins")}
    return RouterReplica.bind(told)  # type: ignore[attr-defined]


@serve.deployment(
    name="Router",
    max_ongoing_requests=ONGOING,
    max_queued_requests=ONGOING,
    ray_actor_options=ON_HEAD,
    max_surge_percent=100,  # it takes no CPU, so there is always room for the new one beside it
    graceful_shutdown_timeout_s=DRAIN_S,
)
@serve.ingress()
class RouterReplica:
    """One replica."""

    async def __init__(self, told: Mapping[str, Any]) -> None:  # type: ignore[misc]
        listen_privately(ray.util.get_node_ip_address())
        self._router = Router(**told)

    async def __serve_build_asgi_app__(self) -> ASGI:
        return Guard(self._router, "")

    async def __del__(self) -> None:
        router = getattr(self, "_router", None)
        if router is not None:
            await router.close()
