"""Two people, one name for a cluster, one account on a host: here with the local transport."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycluster.core.interfaces import Process, Versions
from raycluster.hosts.fleet import Fleet
from raycluster.spec import read_spec
from tests.ports import free_port

SPEC = """schema = 1
cluster = {{ name = "{name}"{owner} }}
ports = {{ api = {port} }}
[head]
transport = "local"
gpus = 0
runtime = {{ kind = "native", python = "{python}", start_on_boot = false }}
[[models]]
name = "m"
"""
SAYS = (
    r"the cluster q there belongs to alice \(running since 20[^)]+Z\), but this spec has owner bob"
)
COMMANDS = (
    *("plan", "up", "deploy", "status", "check", "down --yes", "tunnel", "logs head", "logs app"),
    *("exec head -- true", "bench --prompts prompts.txt", "batch prompts.jsonl -o out.jsonl"),
    "drill --fault replica --yes",
)


@dataclass(frozen=True)
class Shared:
    """A machine with one home folder; alice's cluster `q` has a head there."""

    folder: Path
    port: int

    @property
    def python(self) -> Path:
        """One that has a package by the name of Ray: what is tried beforehand finds it."""
        made = self.folder / "python/bin/python"
        if not made.exists():
            venv.create(made.parents[1], symlinks=True)
            packages = sysconfig.get_path("purelib", "venv", {"base": str(made.parents[1])})
            told = Path(packages, "ray-1.0.dist-info/METADATA")
            told.parent.mkdir()
            told.write_text("Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n")
        return made

    def run(
        self, command: str, owner: str = "", name: str = "q"
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with a spec of one's own."""
        argv = [str(Path(sys.executable).with_name("raycluster")), *command.split()]
        spec = str(self.spec(owner, name))
        env = {**os.environ, "HOME": str(self.folder), "LOGNAME": "bob", "RAYCLUSTER_SPEC": spec}
        return subprocess.run(
            argv, env=env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60
        )

    def spec(self, owner: str, name: str = "q") -> Path:
        path = self.folder / f"{name}-{owner}.toml"
        told = f', owner = "{owner}"' if owner else ""
        text = SPEC.format(name=name, owner=told, port=self.port, python=self.python)
        path.write_text(text)
        return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("home"), free_port())
    (made.folder / "prompts.txt").write_text("hello\n")
    (made.folder / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    listen = f"import socket, time; s = socket.create_server(('', {made.port})); time.sleep(600)"
    head = Process("head", (sys.executable, "-c", listen), ports={"api": made.port})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(made.folder))
        spec = read_spec(made.spec("alice"), {})
        with Fleet("q", 1) as fleet:
            runtime = fleet.open(spec.hosts[0]).runtime
            runtime.start(head, Versions(), {"token": b"0" * 64}, lambda _: None)
            yield made
            assert [(f.health, f.owner) for f in runtime.observe()] == [("running", "alice")]
            runtime.remove()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_leaves_the_cluster_of_somebody_else_alone(
    shared: Shared, command: str
) -> None:
    done = shared.run(command, "bob")
    assert done.returncode not in (0, 2), done.stdout + done.stderr
    assert re.search(SAYS, " ".join((done.stdout + done.stderr).split()))


def test_a_support_bundle_has_nothing_of_somebody_else_s(shared: Shared) -> None:
    done = shared.run("support-bundle -o bundle.tar.gz", "bob")
    assert re.search(SAYS, done.stderr)
    with tarfile.open(shared.folder / "bundle.tar.gz") as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert [name for name in names if "hosts/" in name] == ["hosts/head/error.txt"]


def test_without_a_word_in_the_spec_whoever_runs_it_is_told(shared: Shared) -> None:
    said = " ".join(shared.run("plan").stderr.split())
    machine = os.uname().nodename.partition(".")[0]
    assert f", but this spec names none, and you are bob@{machine}" in said
    assert 'must set `owner = "alice"`' in said


def test_all_who_share_the_owner_s_name_may(shared: Shared) -> None:
    done = shared.run("exec head -- echo hello", "alice")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_port_that_another_cluster_has_is_told_with_its_name_and_owner(
    shared: Shared, command: str
) -> None:
    done = shared.run(command, "bob", name="other")
    said = " ".join((done.stdout + done.stderr).split())
    assert f"port {shared.port} is already in use by the cluster q of alice" in said
    assert done.returncode in (1, 3)


def test_a_folder_of_before_there_were_owners_is_taken(shared: Shared) -> None:
    launch = shared.folder / ".raycluster/q/roles/head/launch.json"
    told = json.loads(launch.read_text())
    launch.write_text(json.dumps({k: v for k, v in told.items() if k not in ("owner", "ports")}))
    try:
        assert shared.run("exec head -- true", "bob").returncode == 0
        assert f"port {shared.port}" in shared.run("check", "bob", name="other").stdout
    finally:
        launch.write_text(json.dumps(told))
