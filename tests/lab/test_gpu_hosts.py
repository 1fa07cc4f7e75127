"""Hosts with GPUs, as far as that goes without one: nvidia-smi and libnvidia-ml are doubles.

Each case has a host of its own. All else is real: SSH, Docker, Ray, which counts the GPUs and hands
them to replicas, and the engine, which is vLLM's CPU build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab import fake_nvidia as fake
from tests.lab.conftest import make_cli
from tests.lab.gpu_hosts import give_gpus, give_library, give_toolkit, make_library
from tests.lab.host import Host, Kind
from tests.lab.hosts import Lab
from tests.lab.program import Cli
from tests.lab.specs import cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

H100 = "NVIDIA H100 80GB HBM3 (80 GiB)"
SLICES = [part.uuid for part in fake.MIG.cards[0].slices or ()]
MADE = {"kind": "native", "uv_args": ["--find-links", "/srv/packages"]}
"""An environment that is made, since no Python is named; the index is far from the lab's hosts."""


@dataclass(frozen=True)
class Case:
    """A host, what the spec says of it, and what `check` tells: a pattern where it is refused.

    Ray finds the driver's library where `seen`.
    """

    driver: fake.Driver | None
    cards: int
    told: str
    gpus: object = "all"
    runtime: Mapping[str, object] = field(default_factory=dict)
    kind: Kind = "native"
    seen: bool = True
    toolkit: bool = False


def old(count: int) -> fake.Driver:
    """Return a driver that is older than what the default environment needs."""
    return fake.Driver(fake.gpus(count, driver_version="570.86.15"))


USABLE = {
    "one": Case(fake.driver(1), 1, f"1 x {H100}, driver 580.65.06"),
    "none": Case(fake.driver(0), 0, "none: models run on CPUs"),
    "no-driver": Case(None, 0, "none: models run on CPUs"),
    "unseen": Case(fake.driver(2), 2, f"2 x {H100}, driver 580.65.06", seen=False),
    "eight": Case(fake.driver(8), 8, f"8 x {H100}, driver 580.65.06"),
    "named": Case(fake.driver(8), 8, f"2 x {H100}, driver 580.65.06", [0, 2]),
    "slices": Case(fake.MIG, 2, "1 x NVIDIA A100-SXM4-80GB MIG 1g.10gb (10 GiB)", [SLICES[1]]),
    "beside-lost": Case(fake.ILL, 2, f"1 x {H100}", [fake.ILL.cards[0].uuid]),
    "old-given": Case(old(1), 1, f"1 x {H100}, driver 570.86.15"),
    "boxed": Case(fake.driver(2), 2, f"2 x {H100}", kind="docker", toolkit=True),
}
REFUSED = {
    "too-few": Case(fake.driver(2), 2, "gpus = 4, but the host has 2$", 4),
    "not-there": Case(fake.driver(2), 2, r"gpus names 2, but the host has 0 \(NVIDIA", [0, 2]),
    "slices-unnamed": Case(fake.MIG, 2, "its GPUs are divided by MIG"),
    "divided": Case(fake.MIG, 2, "gpus names 0, which is divided into MIG slices", [0]),
    "lost": Case(fake.ILL, 2, "a GPU is lost: .*0000:3B:00.0"),
    "old": Case(old(1), 1, "needs NVIDIA's driver 580 or newer .*has 570.86.15", runtime=MADE),
    "silent": Case(fake.ABSENT, 1, "the NVIDIA driver does not respond: "),
    "updated": Case(fake.UPDATED, 1, "the NVIDIA driver was updated while it was loaded"),
    "not-given": Case(
        fake.driver(0), 1, "the machine has an NVIDIA GPU, but nvidia-smi finds none"
    ),
    "bare": Case(None, 1, "the machine has an NVIDIA GPU, but no driver is loaded"),
    "no-toolkit": Case(fake.driver(2), 2, "Docker cannot give GPUs to containers", kind="docker"),
    "boxed-lost": Case(fake.ILL, 2, "a GPU is lost: ", kind="docker", toolkit=True),
    "boxed-silent": Case(fake.ABSENT, 1, "the NVIDIA driver does not respond", kind="docker"),
}
CASES = {**USABLE, **REFUSED}
COUNTED = {"one": 1.0, "none": 0.0, "unseen": 2.0, "eight": 8.0, "named": 2.0, "boxed": 2.0}


@dataclass
class Rack:
    """The hosts by their cases, and a program in a home of its own."""

    lab: Lab
    cli: Cli
    folder: Path
    library: Path
    hosts: dict[str, Host] = field(default_factory=dict)

    def spec(self, cases: Sequence[str], name: str = "rack", **served: object) -> Path:
        """Write a spec whose head is the first case's host; the model takes a GPU.

        `served` are more keys of the model.
        """
        own: dict[str, dict[str, object]] = {}
        for each in cases:
            case = CASES[each]
            own[self.hosts[each].name] = {"gpus": case.gpus}
            if case.runtime:
                own[self.hosts[each].name]["runtime"] = case.runtime
        hosts = [self.hosts[each] for each in cases]
        text = cluster_toml(
            self.lab, hosts, name=name, tiny=True, served={"num_gpus": 1, **served}, own=own
        )
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return path

    def named(self, case: str, cases: Sequence[str]) -> str:
        """Return what the program calls a case's host among others."""
        return "head" if case == cases[0] else self.hosts[case].name

    def traces(self, cases: Sequence[str]) -> dict[str, tuple[object, ...]]:
        """Return what is on the hosts."""
        return {case: self.hosts[case].traces() for case in cases}


@pytest.fixture(scope="module")
def rack(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    folder = tmp_path_factory.mktemp("rack")
    rack = Rack(lab, Cli(folder), folder, make_library(folder))
    rack.hosts = {name: lab.add_host(case.kind) for name, case in CASES.items()}
    try:
        lab.settle(list(rack.hosts.values()))
        rack.cli = make_cli(lab, folder / "home")
        for name, case in CASES.items():
            give_gpus(rack.hosts[name], case.driver, case.cards)
            if case.driver and case.seen:
                give_library(rack.hosts[name], case.driver, rack.library)
            if case.toolkit:
                give_toolkit(rack.hosts[name])
        yield rack
    finally:
        for host in rack.hosts.values():
            lab.remove_host(host)


def rows(rack: Rack, spec: Path) -> tuple[int, dict[str, tuple[bool, str]]]:
    """Return the exit code of `check`, and what it says of each host's GPUs."""
    done = rack.cli("check", spec, "--json")
    checks = json.loads(done.stdout)["checks"]
    gpus = {c["host"]: (c["passed"], c["text"]) for c in checks if c["subject"] == "GPUs"}
    others = [c for c in checks if not c["passed"] and c["subject"] not in ("GPUs", "disk")]
    assert others == []
    return done.returncode, gpus


def test_hosts_whose_gpus_can_be_used(rack: Rack) -> None:
    cases = list(USABLE)
    before = rack.traces(cases)
    spec = rack.spec(cases)
    _, gpus = rows(rack, spec)
    for case in cases:
        passed, text = gpus[rack.named(case, cases)]
        assert passed, (case, text)
        assert text.startswith(USABLE[case].told), case
    plan = rack.cli("plan", spec)
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.count("+ start worker") == len(cases) - 1
    assert rack.traces(cases) == before


def test_hosts_are_chosen_by_their_gpus(rack: Rack) -> None:
    cases = list(USABLE)
    plan = rack.cli("plan", rack.spec(cases, gpu="a100"), "--json")
    assert plan.returncode == 0, plan.stderr
    [planned] = json.loads(plan.stdout)["models"]
    assert list(planned["hosts"]) == [rack.named("slices", cases)]
    before = rack.traces(cases)
    for command in ("plan", "up"):
        done = rack.cli(command, rack.spec(cases, gpu=">= 90 GiB"))
        assert done.returncode == 2, done.stderr
        assert 'gpu = ">= 90 GiB" fits no host: head has 1 x NVIDIA H100' in done.stderr
        assert f"{rack.named('none', cases)} has no GPU" in done.stderr
    assert rack.traces(cases) == before


@pytest.mark.parametrize("case", REFUSED)
def test_a_host_whose_gpus_cannot_be_used(rack: Rack, case: str) -> None:
    cases = ["one", case]
    name = rack.hosts[case].name
    before = rack.traces(cases)
    spec = rack.spec(cases)
    code, gpus = rows(rack, spec)
    assert code == 3
    assert gpus["head"][0]
    assert gpus[name][0] is False
    assert re.search(REFUSED[case].told, gpus[name][1]), gpus[name][1]
    boxed = [("up", "--only", name)] if REFUSED[case].kind == "docker" else []
    for command in (("plan",), ("up",), *boxed):
        done = rack.cli(*command, spec)
        assert done.returncode == 1, done.stderr
        _, _, error = done.stderr.rpartition("error: ")
        assert re.fullmatch(r"[^\n]+\n  next: [^\n]+\n", error), error
        assert error.startswith(f"{name}: "), error
        assert re.search(REFUSED[case].told, error, re.MULTILINE), error
        assert rack.traces(cases) == before


@pytest.mark.parametrize("only", [(), ("--only", "workers")], ids=["all", "workers"])
def test_all_hosts_whose_gpus_cannot_be_used_are_named(rack: Rack, only: Sequence[str]) -> None:
    cases = ["one", *REFUSED]
    before = rack.traces(cases)
    done = rack.cli("up", rack.spec(cases), *only)
    assert done.returncode == 1
    assert rack.traces(cases) == before
    _, _, errors = done.stderr.partition("error: ")
    named = re.findall(r"^([a-z]+-[0-9]+): ", errors, re.MULTILINE)
    # With a part of the cluster alone, Docker is asked when the hosts themselves are in order.
    expected = [case for case in REFUSED if not only or case != "no-toolkit"]
    assert sorted(named) == sorted(rack.hosts[case].name for case in expected), errors


@dataclass
class Running:
    """A cluster of the rack's hosts, up as far as it goes."""

    rack: Rack
    cases: Sequence[str]
    spec: Path
    first: str

    def status(self) -> dict[str, Any]:
        """Return what `status` says."""
        return dict(json.loads(self.rack.cli("status", self.spec, "--json").stdout))

    def counted(self) -> dict[str, float | None]:
        """Return how many GPUs Ray counts on each case's host."""
        nodes = {node["name"]: node["gpus_total"] for node in self.status()["nodes"]}
        return {case: nodes[self.rack.named(case, self.cases)] for case in self.cases}


@pytest.fixture(scope="module")
def running(rack: Rack) -> Iterator[Running]:
    cases = list(COUNTED)
    before = rack.traces(cases)
    spec = rack.spec(cases, "counted")
    try:
        done = rack.cli("up", spec, timeout=400)
        assert done.returncode == 1, done.stderr
        yield Running(rack, cases, spec, done.stderr)
    finally:
        down = rack.cli("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
    assert rack.traces(cases) == before


def test_ray_counts_fewer_gpus_than_the_driver(running: Running) -> None:
    name = running.rack.hosts["unseen"].name
    said = f"error: {name}: Ray sees 0 of the 2 GPUs that the cluster uses on this host\n"
    assert said in running.first
    assert running.status()["models"][0]["status"] == "absent"


def test_ray_counts_the_gpus_of_each_host(running: Running) -> None:
    assert running.counted() == {**COUNTED, "unseen": 0}
    nodes = {node["name"]: node["gpus"] for node in running.status()["nodes"]}
    eight = nodes[running.rack.hosts["eight"].name]
    assert [gpu["index"] for gpu in eight] == [*"01234567"]
    assert {(gpu["source"], gpu["memory_total_mib"]) for gpu in eight} == {("nvidia-smi", 81559)}


def test_up_goes_as_far_as_the_engine(running: Running) -> None:
    """A GPU that is a double runs nothing: `up` looks, and says so before it deploys."""
    cases = [case for case in running.cases if case != "unseen"]
    spec = running.rack.spec(cases, "counted")
    done = running.rack.cli("up", spec, timeout=400)
    assert done.returncode == 1, done.stderr
    _, _, errors = done.stderr.partition("error: ")
    told = re.findall(r"^(\S+): the environment has a CPU build of torch", errors, re.MULTILINE)
    assert told == [running.rack.named(c, cases) for c in cases if COUNTED[c]], errors
    assert running.status()["models"][0]["status"] == "absent"
