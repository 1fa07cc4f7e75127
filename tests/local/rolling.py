"""Rolls models out on a test's cluster as `raycluster deploy` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raycluster.apply.applications import RolloutContext, roll_out
from raycluster.hosts.ray_api import RayApi
from raycluster.plan.actions import Deploy
from raycluster.plan.planner import plan_app
from raycluster.serve.settings import ModelSettings, applications
from raycluster.state.free_capacity import Memory
from tests.local.cluster import Cluster, until
from tests.local.load import Load

START_S = 480
FIRST_NEW_ONE = "starts each new replica before stopping an old one: no interruption"


def deploy(cluster: Cluster, *models: ModelSettings) -> Deploy:
    """Do what `raycluster deploy` does, on hosts with plenty of memory."""
    port = int(cluster.http.base_url.port or 0)
    code = str(cluster.folder / "code")
    wanted = applications(models, code_path=code, fingerprint="test", port=port)

    def write(files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            (cluster.folder / name).write_bytes(content)

    api = RayApi("head", cluster.api)
    memory = {node.node_id: Memory(used=1, available=2**40) for node in api.nodes()}
    change = plan_app(wanted, api.apps(), api.nodes(), memory)
    assert change, "there is nothing to change"
    roll_out(RolloutContext(api, cluster.http, write, lambda _: None), change, START_S)
    return change


def with_args(model: ModelSettings, **more: object) -> ModelSettings:
    return replace(model, engine_args={**model.engine_args, **more})


def at_work(load: Load, count: int, *, seconds: float = 240) -> None:
    """Return when `count` more requests have ended."""
    wanted = len(load.results) + count
    until(lambda: len(load.results) >= wanted, seconds=seconds, what="too few requests ended")
