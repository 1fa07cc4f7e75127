"""What a served model is told, and the request that deploys models through Ray's REST API.

Pure: the laptop uses it too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

EngineChoice = Literal["auto", "vllm", "transformers"]
ProxyLocation = Literal["HeadOnly", "EveryNode"]

ENTRY = "raycluster.serve.app:build"
ROUTER_ENTRY = "raycluster.serve.router_app:build"
ROUTER = "router"
DEPLOYMENT = "Model"

DEFAULT_ONGOING = 256
QUEUED_PER_ONGOING = 4
DRAIN_S = 120.0


@dataclass(frozen=True)
class Autoscale:
    """Between `min` and `max` replicas, so that each has about `target_ongoing_requests`."""

    min: int
    max: int
    target_ongoing_requests: float = 64.0


@dataclass(frozen=True)
class ModelSettings:
    """One model to serve.

    `source` is a hub id or a path on the nodes; `engine_args` uses the engine's own names.
    `secrets_path` names a JSON file (name -> value) on every node, read into the environment of
    the replica before its engine starts; it may hold variables of the node's environment ($NAME).
    `env` is no place for secrets.
    """

    name: str
    source: str
    engine: EngineChoice = "auto"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    replicas: int | Autoscale = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)
    secrets_path: str = ""
    max_ongoing_requests: int = DEFAULT_ONGOING

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["engine_args"] = dict(self.engine_args)
        plain["env"] = dict(self.env)
        if isinstance(self.replicas, Autoscale):
            plain["replicas"] = {f.name: getattr(self.replicas, f.name) for f in fields(Autoscale)}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ModelSettings:
        """Return what `to_json` was called on; unknown keys raise TypeError."""
        values = dict(plain)
        replicas = values.get("replicas")
        if isinstance(replicas, Mapping):
            values["replicas"] = Autoscale(**replicas)
        return cls(**values)


def slugs(names: Sequence[str]) -> dict[str, str]:
    """Return, for each model name, what stands for it in routes and application names."""
    plain = {name: re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") for name in names}
    found = list(plain.values())
    return {
        name: slug
        if slug and slug != ROUTER and found.count(slug) == 1
        else f"{slug}-{_digest(name)}"
        for name, slug in plain.items()
    }


def applications(
    models: Sequence[ModelSettings],
    *,
    fingerprint: str,
    code_path: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    proxy_location: ProxyLocation = "HeadOnly",
    max_surge_percent: int = 0,
) -> dict[str, Any]:
    """Return the body of `PUT /api/serve/applications/` that serves exactly these models.

    `code_path` is the folder on every node that holds this package, where it is not on the nodes'
    own PYTHONPATH. `host`, `port` and `proxy_location` count only when Serve starts: afterwards
    Serve ignores them without an error.
    Replica counts and request limits change in place; anything else restarts the replicas: the old
    ones first, unless `max_surge_percent` allows so many more meanwhile. Without room for them such
    a rollout waits for ever.
    """
    slug = slugs([model.name for model in models])
    alone = len(models) == 1
    apps = [
        _model_application(
            model,
            name=slug[model.name],
            route="/" if alone else f"/m/{slug[model.name]}",
            code_path=code_path,
            fingerprint=fingerprint,
            max_surge_percent=max_surge_percent,
        )
        for model in models
    ]
    if len(models) > 1:
        upstream = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104
        routes = {model.name: f"/m/{slug[model.name]}" for model in models}
        apps.append(_router_application(routes, (upstream, port), code_path, fingerprint))
    return {
        "proxy_location": proxy_location,
        "http_options": {"host": host, "port": port},
        "applications": apps,
    }


def out_of_date(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the applications to deploy or remove, to get from `found` to `wanted`.

    `wanted` is from `applications`, `found` what `GET /api/serve/applications/` returned.
    """
    there = {
        name: app.get("deployed_app_config") or {}
        for name, app in found.get("applications", {}).items()
    }
    wants = {app["name"]: app for app in wanted["applications"]}
    same = {
        name
        for name, app in wants.items()
        if name in there and all(there[name].get(key) == value for key, value in app.items())
    }
    return tuple(sorted((wants.keys() | there.keys()) - same))


def _model_application(
    model: ModelSettings,
    *,
    name: str,
    route: str,
    code_path: str,
    fingerprint: str,
    max_surge_percent: int,
) -> dict[str, Any]:
    in_place = ("replicas", "max_ongoing_requests")
    told = {name: value for name, value in model.to_json().items() if name not in in_place}
    return {
        "name": name,
        "route_prefix": route,
        "import_path": ENTRY,
        "runtime_env": _environment(model.env, code_path),
        "args": {"model": told, "fingerprint": fingerprint},
        "deployments": [
            {
                "name": DEPLOYMENT,
                **_replicas(model.replicas),
                "max_ongoing_requests": model.max_ongoing_requests,
                "max_queued_requests": QUEUED_PER_ONGOING * model.max_ongoing_requests,
                "max_surge_percent": max_surge_percent,
                "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
                "health_check_period_s": 5.0,
                "health_check_timeout_s": 20.0,
                "graceful_shutdown_wait_loop_s": 1.0,
                "graceful_shutdown_timeout_s": DRAIN_S,
                "ray_actor_options": {
                    "num_cpus": float(model.num_cpus),
                    "num_gpus": float(model.num_gpus),
                },
            }
        ],
    }


def _environment(env: Mapping[str, str], code_path: str) -> dict[str, Any]:
    variables = {**env, **({"PYTHONPATH": code_path} if code_path else {})}
    return {"env_vars": variables} if variables else {}


def _replicas(replicas: int | Autoscale) -> dict[str, Any]:
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": replicas.target_ongoing_requests,
        }
    }


def _router_application(
    routes: Mapping[str, str], upstream: tuple[str, int], code_path: str, fingerprint: str
) -> dict[str, Any]:
    host, port = upstream
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return {
        "name": ROUTER,
        "route_prefix": "/",
        "import_path": ROUTER_ENTRY,
        "runtime_env": _environment({}, code_path),
        "args": {"routes": dict(routes), "upstream": url, "fingerprint": fingerprint},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
