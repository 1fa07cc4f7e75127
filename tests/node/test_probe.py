"""The look at a node's environment, in the tests' own: real torch and vLLM, for CPUs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.engine_probe import on_node
from raycluster.apply.engine_probe.ask import check_environments, look
from raycluster.apply.engine_probe.told import MARK, read
from raycluster.core.errors import HostError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts.fleet import Fleet
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica
from tests.local.cluster import made_by

pytestmark = pytest.mark.local

NODE = RayNode("127.0.0.1", "n", alive=True, is_head=True, gpus=1)


@pytest.fixture(scope="module")
def python() -> str:
    return f"{made_by('node-env')}/bin/python"


def test_the_program_tells_every_part(python: str) -> None:
    began = time.monotonic()
    program = Path(on_node.__file__).read_text()
    done = subprocess.run([python, "-c", program], input=b"", capture_output=True, check=True)
    assert time.monotonic() - began < 30
    told = json.loads(done.stdout.decode().rpartition(MARK)[2])
    assert set(told) == {
        *("schema", "failed", "gpus", "torch", "vllm", "count", "init"),
        *on_node.PARTS,
    }
    assert told["failed"] == {}
    seen = read(done.stdout, "here")
    assert seen.torch is not None
    assert (seen.torch.version.partition("+")[2], seen.torch.cuda) == ("cpu", "")
    assert (seen.vllm, seen.kernels, seen.more, seen.count) == (True, "", "", 0)


@contextmanager
def running(python: str) -> Iterator[ApplyContext]:
    """Make a cluster of one host whose node is a process that does nothing."""
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"kind": "native", "python": python, "start_on_boot": False},
            "head": {"transport": "local", "gpus": 1},
            "models": [{"name": "m", "source": "/models/m"}],
            "env": {"CUDA_VISIBLE_DEVICES": "7", "CC": "/nowhere/cc"},
        }
    )
    with Fleet("q", 1) as fleet:
        fleet.reach(spec.hosts, lambda connected: connected.address)
        runtime = fleet["head"].runtime
        try:
            runtime.start(Process("head", ("sleep", "600")), Versions(), {}, lambda _: None)
            yield ApplyContext(spec, fleet, Secret("t"), Secrets(), lambda _: None)
        finally:
            runtime.remove()


@pytest.fixture
def work(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApplyContext]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(python) as work:
        yield work


def state_of(*replicas: Replica, gpus: float = 1, app: str = "m") -> ClusterState:
    return ClusterState(
        {"head": HostState("head", "127.0.0.1")},
        nodes=(replace(NODE, gpus=gpus),),
        apps=(App(app, "RUNNING", replicas=replicas),),
    )


def test_up_refuses_a_torch_for_cpus_on_a_host_with_gpus(work: ApplyContext) -> None:
    told: list[Event] = []
    work = replace(work, listen=told.append)
    with pytest.raises(
        HostError, match=r"head: the environment has a CPU build of torch"
    ) as caught:
        check_environments(work, state_of(), {"head"})
    assert "gpus = 0" in caught.value.hint
    assert [event.text for event in told] == ["checking its GPUs from the environment"]


def test_it_looks_only_where_replicas_will_start(work: ApplyContext) -> None:
    told: list[Event] = []
    work = replace(work, listen=told.append)
    runs = Replica("r", "RUNNING", node_id="n")
    check_environments(work, state_of(), ())
    check_environments(work, state_of(gpus=0), {"head"})
    check_environments(work, state_of(runs), {"head"})
    assert told == []
    for state in (
        state_of(runs, app="router"),
        state_of(replace(runs, node_id="other")),
        state_of(replace(runs, state="STARTING")),
    ):
        with pytest.raises(HostError):
            check_environments(work, state, {"head"})


def test_it_has_the_replicas_environment(work: ApplyContext) -> None:
    seen = look(work.fleet["head"], work.spec.env)
    assert seen.compiler == ""
    assert look(work.fleet["head"], {}).compiler != ""


@pytest.mark.parametrize(
    ("says", "what"),
    [
        ("echo no such library >&2; exit 1", "no such library"),
        ("exec yes words", "w"),
        ("exec yes | tr -d '\\n'", "y"),
        ("kill -9 $$", "it printed nothing|Killed"),
    ],
)
def test_an_environment_whose_python_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, what: str
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{says}\n")
    python.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    match = f"head: checking its environment failed: ({what})"
    with running(str(python)) as work, pytest.raises(HostError, match=match) as caught:
        look(work.fleet["head"], {})
    assert len(str(caught.value)) < 500
