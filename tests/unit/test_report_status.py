"""What `status` shows, on terminals of several widths and to programs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from raycluster.contracts import Found, Versions
from raycluster.errors import RuntimeUnavailableError, UnreachableError
from raycluster.health import Health, ModelHealth, judge
from raycluster.report import status_json, status_view
from raycluster.spec import ClusterSpec
from raycluster.state import App, ClusterState, HostState, RayNode, Replica

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "127.0.0.1"},
        "workers": [
            {"host": "127.0.0.2", "name": "gpu-machine-2"},
            {"host": "127.0.0.3", "name": "no-docker"},
        ],
        "models": [{"name": MODEL}],
    }
)
USAGE = {
    "cpu": 12.5,
    "mem": [64 * 2**30, 0, 0, 8 * 2**30],
    "gpus": [{"utilizationGpu": 95, "memoryUsed": 70000, "memoryTotal": 81920}],
}


def health() -> Health:
    found = Found("head", "1", "running", Versions("3.11.7", "2.60.0", "0.32.0"))
    app = App("m", "RUNNING", replicas=(Replica("r", "RUNNING"),))
    state = ClusterState(
        {
            "head": HostState("head", "127.0.0.1", (found,)),
            "gpu-machine-2": HostState("gpu-machine-2", problem=UnreachableError("is off")),
            "no-docker": HostState("no-docker", problem=RuntimeUnavailableError("no Docker")),
        },
        nodes=(RayNode("127.0.0.1", "n", alive=True, is_head=True, gpus=1),),
        apps=(app,),
    )
    models = (ModelHealth(MODEL, app, "vllm"),)
    return Health(SPEC, state, {"n": USAGE}, models, judge(SPEC, state, models))


def shown(width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(status_view(health()))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_host_that_was_not_seen_is_not_said_to_be_without_its_process() -> None:
    nodes = status_json(health())["nodes"]
    assert [n["process"] for n in nodes] == ["running", "unreachable", "unknown"]
    assert any(line.split()[:4:3] == ["gpu-machine-2", "unreachable"] for line in shown(200))


def test_a_model_on_a_head_that_was_not_seen_is_unknown() -> None:
    seen = health()
    hosts = {"head": HostState("head", problem=UnreachableError("is off"))}
    state = ClusterState({**seen.state.hosts, **hosts})
    away = Health(SPEC, state, {}, (ModelHealth(MODEL, None),), ())
    assert [m["status"] for m in status_json(away)["models"]] == ["unknown"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_name_is_broken_or_cut_at_any_width(width: int) -> None:
    lines = shown(width)
    assert all(len(line) <= width for line in lines)
    begins = [line.split()[:1] for line in lines]
    for whole in ("head", "gpu-machine-2", "no-docker", MODEL):
        assert [whole] in begins
    assert any("ready" in line and line.startswith("head") for line in lines)


def test_everything_is_shown_where_there_is_room_for_it() -> None:
    (head,) = (line.split() for line in shown(200) if line.startswith("head"))
    assert head == [
        *("head", "head", "127.0.0.1", "docker", "ready", "2.60.0", "0.32.0"),
        *("12%", "8.0/64G", "95%", "70000/81920M"),
    ]
