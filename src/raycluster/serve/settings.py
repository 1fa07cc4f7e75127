"""What a served model is told, and the request that deploys models through Ray's REST API.

Pure: the laptop uses it too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from raycluster.serve.environment import Environment

EngineChoice = Literal["auto", "vllm", "transformers"]
Routing = Literal["least-busy", "sticky", "prefix"]

ENTRY = "raycluster.serve.app:build"
ROUTER_ENTRY = "raycluster.serve.router_app:build"
ROUTER = "router"
WAITING_ROUTE = f"/m/{ROUTER}"
"""Where a new router starts while a model still has "/"; no model's route can be this one."""
ENGINE_HEADER = "x-raycluster-engine"
ENGINE_PATH = "/raycluster/engine"
"""Where a replica tells its model, its engine, why that is not vLLM, and its process."""
EARLIER_PATH = "/raycluster/earlier"
"""Where a replica tells its figures as they were some seconds ago, in Prometheus's format."""
AGE_HEADER = "x-raycluster-age"
"""How many seconds ago that was."""
DEPLOYMENT = "Model"
METRICS_PORT = "RAYCLUSTER_METRICS_PORT"
"""The variable that holds the port of Ray's metrics on a node with an IPv6 address.

Ray tells them to IPv4 alone.
"""
OFFSET = "RAYCLUSTER_ENGINE_OFFSET"
"""The variable that holds how far above a replica's own port its engine's server listens."""

SHUT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters would change on one replica alone: "
    "name them under `adapters`",
    "VLLM_SERVER_DEV_MODE": "whoever reaches a replica could put it to sleep or change its weights",
}
"""Variables that give vLLM's server endpoints which change a replica, and why none is set."""

DEFAULT_ONGOING = 256
QUEUED_PER_ONGOING = 4
GPU_MEMORY = 0.8
"""The share of a GPU's memory that a replica takes unless `engine_args` say so; vLLM's is more."""
CPU_KV_GIB = 1
"""Memory for keys and values on a CPU unless VLLM_CPU_KVCACHE_SPACE says so."""
DRAIN_S = 600.0
"""Seconds that a replica that ends gives its requests; a stream that takes longer is cut."""
ONE_AT_A_TIME = 0.01
"""The part of the replicas that a rollout replaces at once; Serve makes at least one of it."""


@dataclass(frozen=True)
class Autoscale:
    """Between `min` and `max` replicas, so that each has about `target_ongoing_requests`.

    Delays are in seconds. `policy` is "module:function" for Serve, which the nodes import.
    """

    min: int
    max: int
    target_ongoing_requests: float = 64.0
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0
    to_zero_delay: float = 900.0
    policy: str | None = None


@dataclass(frozen=True)
class ModelSettings:
    """One model to serve.

    `source` is a hub id or a path on the nodes; `engine_args` uses the engine's own names.
    `secrets_path` names a JSON file (name -> value) on every node, read into the environment of
    the replica before its engine starts; it may hold variables of the node's environment ($NAME).
    `env` is no place for secrets.
    `aliases` are further names of the model; `adapters` are LoRA adapters, name -> hub id or path.
    `spread` is not 0 where a replica needs
    several hosts: it is the number of its equal parts then, each with its GPUs on one host.
    `hosts` are the nodes that may run replicas, each with its label; without any, all of them.
    `gpu` is what these were chosen by.
    `environment` is the one of vLLM, where that is not the node's own.
    `routing` is for HAProxy, which reads it when replicas change: see `balance`.
    """

    name: str
    source: str
    engine: EngineChoice = "auto"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    replicas: int | Autoscale = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    hosts: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets_path: str = ""
    max_ongoing_requests: int = DEFAULT_ONGOING
    max_queued_requests: int | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    spread: int = 0
    routing: Routing = "least-busy"
    environment: Environment | None = None

    @property
    def further_names(self) -> tuple[str, ...]:
        """What clients may ask for but its own name."""
        return (*self.aliases, *self.adapters)

    @property
    def sleeps(self) -> bool:
        """True when the model may have no replica, which any request would start."""
        return isinstance(self.replicas, Autoscale) and self.replicas.min == 0

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["engine_args"] = dict(self.engine_args)
        plain["env"] = dict(self.env)
        plain["adapters"] = dict(self.adapters)
        plain["aliases"] = list(self.aliases)
        plain["hosts"] = dict(self.hosts)
        if not self.gpu:
            del plain["gpu"]  # what runs without is then the same as before there was such a word
        plain["environment"] = self.environment.to_json() if self.environment else None
        if isinstance(self.replicas, Autoscale):
            plain["replicas"] = {f.name: getattr(self.replicas, f.name) for f in fields(Autoscale)}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ModelSettings:
        """Return what `to_json` was called on; unknown keys raise TypeError."""
        values = {**plain, "aliases": tuple(plain.get("aliases", ()))}
        replicas = values.get("replicas")
        if isinstance(replicas, Mapping):
            values["replicas"] = Autoscale(**replicas)
        if isinstance(environment := values.get("environment"), Mapping):
            values["environment"] = Environment.from_json(environment)
        return cls(**values)


HOST_LABEL = "raycluster/host"
"""The label of a node of Ray by which models are placed on its host."""


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
) -> dict[str, Any]:
    """Return the body of `PUT /api/serve/applications/` that serves exactly these models.

    `code_path` is the folder on every node that holds this package, where it is not on the nodes'
    own PYTHONPATH. `host` and `port` count only when Serve starts: afterwards Serve ignores
    them without an error.
    Replica counts change in place; anything else restarts the replicas, one at a time and the old
    one first: request limits too, which HAProxy learns of when replicas change. Who knows that
    there is room for more of them meanwhile says so with `max_surge_percent`.
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
        )
        for model in models
    ]
    if len(models) > 1:
        upstream = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104
        told = {
            "routes": {
                name: f"/m/{slug[model.name]}"
                for model in models
                for name in (model.name, *model.further_names)
            },
            "adapters": {name: model.name for model in models for name in model.further_names},
            "asleep": [model.name for model in models if model.sleeps],
            "origins": _origins(models),
        }
        apps.append(_router_application(told, (upstream, port), code_path, fingerprint))
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": apps,
    }


def haproxy_of(body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what HAProxy is told of the applications of `body`.

    `routes` has the path prefix of each model by its name, where there is a router for several;
    `routing` how each application that is a model is to be balanced, by its name, and `limits` how
    many requests one of its replicas takes at once, and how many wait for one.
    """
    args = {app["name"]: app.get("args", {}) for app in body["applications"]}
    models = {name: told["model"] for name, told in args.items() if "model" in told}
    limits = {
        app["name"]: [
            app["deployments"][0][f"max_{kind}_requests"] for kind in ("ongoing", "queued")
        ]
        for app in body["applications"]
        if app["name"] in models
    }
    return {
        "limits": limits,
        "routes": dict(args[ROUTER]["routes"]) if ROUTER in args else {},
        "routing": {name: model["routing"] for name, model in models.items()},
    }


def _model_application(
    model: ModelSettings,
    *,
    name: str,
    route: str,
    code_path: str,
    fingerprint: str,
) -> dict[str, Any]:
    told = {name: value for name, value in model.to_json().items() if name != "replicas"}
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
                "max_queued_requests": model.max_queued_requests
                or QUEUED_PER_ONGOING * model.max_ongoing_requests,
                "max_surge_percent": 0,
                "rolling_update_percentage": ONE_AT_A_TIME,
                "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
                "health_check_period_s": 5.0,
                "health_check_timeout_s": 12.0,
                # An engine starts in `reconfigure`, which Serve calls for this alone: a replica
                # knows its port then.
                "user_config": {},
                "graceful_shutdown_wait_loop_s": 1.0,
                "graceful_shutdown_timeout_s": DRAIN_S,
                **_place(model),
            }
        ],
    }


def _environment(env: Mapping[str, str], code_path: str) -> dict[str, Any]:
    variables = {**env, **({"PYTHONPATH": code_path} if code_path else {})}
    return {"env_vars": variables} if variables else {}


def _replicas(replicas: int | Autoscale) -> dict[str, Any]:
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    config: dict[str, Any] = {
        "min_replicas": replicas.min,
        "max_replicas": replicas.max,
        "target_ongoing_requests": replicas.target_ongoing_requests,
        "upscale_delay_s": replicas.upscale_delay,
        "downscale_delay_s": replicas.downscale_delay,
        "downscale_to_zero_delay_s": replicas.to_zero_delay,
    }
    if not replicas.min:
        # So that a model that cannot start is seen at once. Serve goes back to this number at every
        # change of the deployment, so it is left out elsewhere.
        config["initial_replicas"] = 1
    if replicas.policy:
        config["policy"] = {"policy_function": replicas.policy}
    return {"autoscaling_config": config}


def _place(model: ModelSettings) -> dict[str, Any]:
    """Return what a replica takes; one that spreads gets a bundle for each of its parts.

    The replica itself has the first part, and starts the others in the other bundles.
    """
    cpus, gpus = float(model.num_cpus), float(model.num_gpus)
    where = {HOST_LABEL: f"in({', '.join(model.hosts.values())})"} if model.hosts else {}
    if not model.spread:
        chosen = {"label_selector": where} if where else {}
        return {"ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus, **chosen}}
    each = gpus / model.spread
    other = {"GPU": each} if each else {"CPU": cpus}
    first = {"CPU": cpus, **other} if cpus else other
    return {
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": each},
        "placement_group_bundles": [first, *([other] * (model.spread - 1))],
        "placement_group_strategy": "PACK",
        **({"placement_group_bundle_label_selector": [where]} if where else {}),
    }


def _router_application(
    told: Mapping[str, Any], upstream: tuple[str, int], code_path: str, fingerprint: str
) -> dict[str, Any]:
    host, port = upstream
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return {
        "name": ROUTER,
        "route_prefix": "/",
        "import_path": ROUTER_ENTRY,
        "runtime_env": _environment({}, code_path),
        "args": {**told, "upstream": url, "fingerprint": fingerprint},
    }


def _origins(models: Sequence[ModelSettings]) -> list[str]:
    """Return the web pages that may read the answers of all models; vLLM lets all by itself."""
    given = [{n.replace("-", "_"): v for n, v in m.engine_args.items()} for m in models]
    said = [told["allowed_origins"] for told in given if "allowed_origins" in told]
    lists = [set(map(str, each)) for each in said if isinstance(each, (list, tuple))]
    named = [each for each in lists if "*" not in each]
    return sorted(set.intersection(*named)) if named else ["*"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
