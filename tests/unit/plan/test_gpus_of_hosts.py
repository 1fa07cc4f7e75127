"""What `check` and `up` make of a host's GPUs; nvidia-smi is a double, the host this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.entry import placed
from raycluster.apply.look_ahead import look_ahead
from raycluster.apply.node_checks import check_nodes_gpus
from raycluster.apply.nodes import apply_nodes
from raycluster.check.hosts import Finding, _gpus_of, check_hosts, check_plan
from raycluster.core.accelerators.values import Accelerators, Device, Trouble
from raycluster.core.errors import HostError, SpecError
from raycluster.core.events import Event
from raycluster.core.interfaces import Facts, Secret
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.facts import read_facts, read_listening
from raycluster.plan.actions import APP, EVERYTHING, Only, Start
from raycluster.plan.preconditions import check_counted, check_host_gpus
from raycluster.requirements import cpu_lock, gpu_lock
from raycluster.services.processes import desired
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.runtime_section import CPU_REQUIREMENTS, GPU_REQUIREMENTS
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState, HostState, RayNode
from tests.lab import fake_nvidia as fake

Install = Callable[[fake.Driver], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make this machine's nvidia-smi one of the tests' own."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))

    def install(driver: fake.Driver) -> None:
        driver.install(tmp_path / "bin")

    return install


def spec_of(gpus: object = "all", **runtime: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"kind": "native", **runtime},
            "head": {"transport": "local", "gpus": gpus},
            "models": [{"name": "m", "source": "/models/m"}],
        }
    )


def host_of(gpus: object = "all", **runtime: Any) -> ResolvedHost:
    return spec_of(gpus, **runtime).hosts[0]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet("q", 4) as fleet:
        yield fleet


def work_of(spec: ClusterSpec, fleet: Fleet, told: list[Event]) -> ApplyContext:
    fleet.reach(spec.hosts, lambda connected: connected.address)
    return ApplyContext(spec, fleet, Secret("t"), Secrets(), told.append)


def head_of(spec: ClusterSpec) -> Start:
    host = spec.hosts[0]
    return Start(host.name, desired(spec, host, Wiring({"head": "127.0.0.1"}, Secret("t")))[0], "")


def state_of(*nodes: RayNode) -> ClusterState:
    return ClusterState({"head": HostState("head", "127.0.0.1")}, nodes=nodes)


def test_facts_hold_the_gpus(install: Install) -> None:
    install(fake.driver(2))
    gpus = read_facts(LocalTransport("here")).gpus
    assert [device.index for device in gpus.devices] == ["0", "1"]
    assert read_listening(LocalTransport("here")) is not None


@pytest.mark.parametrize(
    ("driver", "gpus", "made"),
    [
        (fake.driver(1), "all", GPU_REQUIREMENTS),
        (fake.driver(8), [0, 7], GPU_REQUIREMENTS),
        (fake.driver(8), 0, CPU_REQUIREMENTS),
        (fake.driver(0), "all", CPU_REQUIREMENTS),
        (fake.ABSENT, "all", CPU_REQUIREMENTS),
    ],
)
def test_which_environment_is_made(
    install: Install, driver: fake.Driver, gpus: object, made: tuple[str, ...]
) -> None:
    install(driver)
    requirements, arguments, lock = connect._engine(host_of(gpus), LocalTransport("here"))
    assert requirements == made
    assert bool(arguments) is (made == CPU_REQUIREMENTS)
    assert lock == (gpu_lock() if made == GPU_REQUIREMENTS else cpu_lock())


def gpus_found(spec: ClusterSpec, fleet: Fleet) -> Finding:
    [found] = [f for f in check_hosts(spec, fleet) if f.subject == "GPUs"]
    return found


@pytest.mark.parametrize(
    ("driver", "gpus", "text"),
    [
        (fake.driver(8), "all", "8 x NVIDIA H100 80GB HBM3 (80 GiB), driver 580.65.06"),
        (fake.driver(8), [1, 3], "2 x NVIDIA H100 80GB HBM3 (80 GiB), driver 580.65.06"),
        (fake.driver(0), "all", "none: models run on CPUs"),
        (fake.UPDATED, 0, "none is used: gpus = 0"),
        (fake.driver(1, cards=fake.gpus(1, **{"memory.total": "[N/A]"})), "all",
         "1 x NVIDIA H100 80GB HBM3, driver 580.65.06"),
    ],
)  # fmt: skip
def test_check_tells_the_gpus_that_are_used(
    install: Install, fleet: Fleet, driver: fake.Driver, gpus: object, text: str
) -> None:
    install(driver)
    found = gpus_found(spec_of(gpus, python=sys.executable), fleet)
    assert (found.passed, found.text) == (True, text)


@pytest.mark.parametrize(
    ("driver", "gpus", "said"),
    [
        (fake.ILL, "all", ("a GPU is lost: Unable to determine the device handle", "gpus = 0")),
        (fake.driver(2), 3, ("gpus = 3, but the host has 2", "nvidia-smi")),
        (fake.driver(2), [5], ("gpus names 5, but the host has 0 (NVIDIA H100", "nvidia-smi -L")),
        (
            fake.MIG,
            "all",
            ("its GPUs are divided by MIG", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"),
        ),
    ],
)
def test_check_fails_with_the_drivers_words_and_a_next_step(
    install: Install, fleet: Fleet, driver: fake.Driver, gpus: object, said: tuple[str, str]
) -> None:
    install(driver)
    found = gpus_found(spec_of(gpus, python=sys.executable), fleet)
    assert not found.passed
    assert said[0] in found.text
    assert said[1] in found.hint


def test_up_refuses_before_anything_is_brought(install: Install, fleet: Fleet) -> None:
    """Neither is an environment made nor are models judged for a CPU, of which nobody asked."""
    install(fake.ILL)
    told: list[Event] = []
    spec = spec_of()
    work, start = work_of(spec, fleet, told), head_of(spec)
    for attempt in (
        lambda: look_ahead(work, state_of(), (start,)),
        lambda: apply_nodes(work, state_of(), (start,)),
    ):
        with pytest.raises(HostError, match="head: a GPU is lost") as caught:
            attempt()
        assert "gpus = 0" in str(caught.value)  # a port may be taken here, too
    assert told == []


@pytest.mark.parametrize("gpus", [2, [0, 1]])
def test_ray_counting_fewer_than_the_spec_names(fleet: Fleet, gpus: object) -> None:
    work = work_of(spec_of(gpus, python="python3"), fleet, [])
    node = RayNode("127.0.0.1", "n", alive=True, is_head=True, gpus=1)
    with pytest.raises(HostError, match=r"Ray sees 1 of the 2 GPUs"):
        check_nodes_gpus(work, state_of(node))
    check_nodes_gpus(work, state_of(replace(node, gpus=2)))
    check_nodes_gpus(work, state_of())


def test_ray_counting_fewer_than_the_host_has(install: Install, fleet: Fleet) -> None:
    install(fake.driver(8))
    told: list[Event] = []
    work = work_of(spec_of(python="python3"), fleet, told)
    node = RayNode("127.0.0.1", "n", alive=True, is_head=True, gpus=8)
    check_nodes_gpus(work, state_of(node))
    with pytest.raises(HostError, match=r"head: Ray sees 0 of the 8 GPUs"):
        check_nodes_gpus(work, state_of(replace(node, gpus=0)))
    assert told == []
    install(fake.ILL)
    check_nodes_gpus(work, state_of(node))
    assert [(event.subject, event.kind) for event in told] == [("head", "note")]
    with pytest.raises(HostError, match=r"head: a GPU is lost"):
        check_nodes_gpus(work, state_of(replace(node, gpus=0)))
    install(fake.MIG)
    with pytest.raises(HostError, match=r"head: its GPUs are divided by MIG"):
        check_nodes_gpus(work, state_of(replace(node, gpus=2)))


@pytest.mark.parametrize(
    ("runtime", "hint"),
    [
        ({"kind": "docker"}, "check the container toolkit"),
        ({"kind": "native"}, "raycluster exec head -- nvidia-smi -L"),
        ({"kind": "native"}, "raycluster down and then raycluster up"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "remove CUDA_VISIBLE_DEVICES from runtime.env"),
        (
            {"kind": "docker", "env": {"NVIDIA_VISIBLE_DEVICES": "0"}},
            "remove NVIDIA_VISIBLE_DEVICES",
        ),
    ],
)
def test_the_likely_cause_of_fewer_gpus(runtime: dict[str, Any], hint: str) -> None:
    with pytest.raises(HostError) as caught:
        check_counted(host_of(2, **runtime), Facts(), 1)
    assert hint in caught.value.hint


AMD = Accelerators((Device("0", "", "AMD gfx942"),), vendor="amd", denied="ubuntu")


@pytest.mark.parametrize(
    ("gpus", "runtime", "found", "what"),
    [
        ("all", {}, AMD, "the environment that raycluster creates is for NVIDIA GPUs"),
        ("all", {"python": "p"}, AMD, "user ubuntu has no permission for /dev/kfd"),
        ("all", {"python": "p"}, replace(AMD, denied=""), ""),
        ("all", {"kind": "docker"}, AMD, ""),
        (0, {}, AMD, ""),
        (2, {"kind": "docker"}, AMD, "gpus = 2, but the host has 1"),
        ("all", {}, Accelerators(problem=Trouble("no driver", "install it")), "no driver"),
        (0, {}, Accelerators(problem=Trouble("no driver", "install it")), ""),
    ],
)
def test_what_a_host_has_to_have(
    gpus: object, runtime: dict[str, Any], found: Accelerators, what: str
) -> None:
    host, facts = host_of(gpus, **runtime), Facts(gpus=found)
    if not what:
        check_host_gpus(host, facts)
        return
    with pytest.raises(HostError) as caught:
        check_host_gpus(host, facts)
    assert what in caught.value.what
    assert caught.value.where == "head"


def test_check_says_what_may_be_a_gpu_and_is_not_counted(fleet: Fleet) -> None:
    doubt = Trouble(
        "Windows shares a GPU with this machine (/dev/dxg), but nvidia-smi lists none", "i"
    )
    spec = spec_of(python=sys.executable)
    fleet.reach(spec.hosts, lambda connected: connected.address)
    found = _gpus_of(fleet["head"], Facts(gpus=Accelerators(unseen=doubt)), [], usable=True)
    assert found.passed
    assert found.text.startswith("none: models run on CPUs; Windows shares a GPU with this machine")
    assert "gpus = 0" in found.hint


def wanting(gpu: str) -> ClusterSpec:
    spec = spec_of(python=sys.executable)
    models = [m.model_copy(update={"gpu": gpu}) for m in spec.models]
    return spec.model_copy(update={"models": tuple(models)})


def test_a_model_is_placed_by_the_gpus_that_hosts_tell(install: Install, fleet: Fleet) -> None:
    install(fake.driver(2))
    spec, state = wanting("h100 >= 80 GB"), state_of()
    fleet.reach(spec.hosts, lambda connected: connected.address)
    found, notes = placed(spec, fleet, state, EVERYTHING)
    assert (found.models[0].hosts, notes) == (("head",), ())
    lacking = wanting("A6000")
    for only in (EVERYTHING, APP):
        with pytest.raises(SpecError, match="fits no host: head has 2 x NVIDIA H100"):
            placed(lacking, fleet, state, only)
    nodes_alone = Only(host="head")
    assert placed(lacking, fleet, state, nodes_alone)[0].models[0].hosts is None
    away = ClusterState({"head": HostState("head", problem=HostError("no route"))})
    with pytest.raises(SpecError, match="head was not seen"):
        placed(spec, fleet, away, APP)


def test_check_tells_once_that_no_host_has_what_a_model_asks_for(
    install: Install, fleet: Fleet
) -> None:
    install(fake.driver(2))
    spec = wanting("A6000")
    findings = check_hosts(spec, fleet)
    found = [*findings, *check_plan(spec, fleet, Secrets(), findings)]
    told = [(f.host, f.subject) for f in found if "A6000" in f.text]
    assert told == [("m", "plan")]
