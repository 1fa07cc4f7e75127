"""A cluster of made-up hosts, as `status` may have seen it."""

from __future__ import annotations

from typing import Any

from raycluster.core.errors import RuntimeUnavailableError, UnreachableError
from raycluster.core.interfaces import Found, Versions
from raycluster.core.untrusted import Told
from raycluster.observe.diagnosis import Health, ModelHealth, diagnose
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica
from raycluster.status import gpus
from raycluster.status.ask import Standing
from raycluster.status.figures import Latency, ModelFigures, Rates, cost
from raycluster.tunnel.record import Opened

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
USAGE = {"cpu": 12.5, "mem": [64 * 2**30, 0, 0, 8 * 2**30]}
GPU = {
    **{"index": 0, "name": "NVIDIA H100", "utilizationGpu": 95},
    **{"memoryUsed": 70000, "memoryTotal": 81920, "temperatureC": 71, "powerMw": 350500},
}
FIGURES = ModelFigures(
    1, 3.0, 0.0, 0.12, Rates("replicas", 10.0, 12.34, 0.0, 1234.5), Latency(0.045, 1.25, 10.0)
)


def spec(**changes: Any) -> ClusterSpec:
    """Return a spec of three hosts, of which two cost something."""
    table: dict[str, Any] = {
        "cluster": {"name": "q", "currency": "EUR"},
        "head": {"host": "127.0.0.1", "price_per_hour": 2.0},
        "workers": [
            {"host": "127.0.0.2", "name": "gpu-machine-2", "price_per_hour": 2.5},
            {"host": "127.0.0.3", "name": "no-docker", "price_per_hour": 0.5},
        ],
        "models": [{"name": MODEL}],
    }
    return ClusterSpec.model_validate(table | changes)


def whole(count: int = 3, **changes: Any) -> Standing:
    """Return a healthy cluster of `count` hosts, each with a GPU."""
    names = [f"gpu-machine-{n}" for n in range(2, count + 1)]
    workers = [{"host": f"127.0.0.{n}", "name": name} for n, name in enumerate(names, 2)]
    told = spec(workers=workers)
    versions = Versions("3.11.7", "2.60.0", "0.32.0")
    hosts = {
        h.name: HostState(h.name, h.host, (Found(h.role, "1", "running", versions),))
        for h in told.hosts
    }
    nodes = tuple(
        RayNode(h.host, h.name, alive=True, is_head=h.role == "head", gpus=1) for h in told.hosts
    )
    app = App("m", "RUNNING", replicas=(Replica("r", "RUNNING"),), wanted=1)
    return standing(told, ClusterState(hosts, nodes=nodes, apps=(app,)), **changes)


def broken() -> Standing:
    """Return a cluster of which one host is off, and one has no Docker."""
    found = Found("head", "1", "running", Versions("3.11.7", "2.60.0", "0.32.0"))
    app = App("m", "RUNNING", replicas=(Replica("r", "RUNNING"),), wanted=1)
    state = ClusterState(
        {
            "head": HostState("head", "127.0.0.1", (found,)),
            "gpu-machine-2": HostState("gpu-machine-2", problem=UnreachableError("is off")),
            "no-docker": HostState("no-docker", problem=RuntimeUnavailableError("no Docker")),
        },
        nodes=(RayNode("127.0.0.1", "head", alive=True, is_head=True, gpus=1),),
        apps=(app,),
    )
    return standing(spec(), state)


def standing(told: ClusterSpec, state: ClusterState, **changes: Any) -> Standing:
    """Return what was seen of a cluster in this state."""
    app = next(iter(state.apps or ()), None)
    models = (ModelHealth(MODEL, app, "vllm" if app else ""),)
    usage = {node.node_id: Told(USAGE) for node in state.nodes or ()}
    health = Health(told, state, usage, models, diagnose(told, state, models))
    seen: dict[str, Any] = {
        "figures": {MODEL: FIGURES},
        "gpus": {name: gpus.from_ray(Told([GPU])) for name, h in state.hosts.items() if h.found},
        "tunnels": (Opened("q", "h", 7, "2026-11-26T18:00:00+00:00", {"API": "http://a/v1"}),),
        "cost": cost(told, {MODEL: FIGURES}),
        "taken": "2026-11-26T18:40:00.000+00:00",
    }
    return Standing(health, **(seen | changes))
