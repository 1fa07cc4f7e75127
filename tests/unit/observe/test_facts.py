"""What a host offers, as its own shell tells it, and what is refused for want of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raycluster.apply.look_ahead import disk_of
from raycluster.apply.node_checks import check_facts
from raycluster.check.hosts import _disk, _fits
from raycluster.core.cgroups import Limits
from raycluster.core.errors import AnswerError, CommandError, HostError
from raycluster.core.interfaces import Facts, Process
from raycluster.hosts.dashboard import holders
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.facts import read_facts, read_listening
from raycluster.observe.listening_ports import read_listeners
from raycluster.plan.actions import Start
from tests.unit.plan.forecast.given import spec_of

NGINX = Process("gateway", ("sh",), program="nginx")


def test_programs_are_those_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "grafana"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = read_facts(LocalTransport("here"))
    there = {name for name in ("nginx", "prometheus") if shutil.which(name, path=_search())}
    assert facts.programs == {"grafana"} | there
    assert facts.cpus >= 1


def test_a_native_host_without_a_services_program_is_refused_before_anything_starts() -> None:
    host = spec_of(runtime={"kind": "native"}).hosts[0]
    with pytest.raises(HostError) as caught:
        check_facts(host, Start("head", NGINX, "new"), Facts())
    assert "nginx is not installed; without Docker, the gateway needs it" in str(caught.value)
    check_facts(host, Start("head", NGINX, "new"), Facts(programs=frozenset({"nginx"})))


def test_with_docker_the_image_brings_the_program() -> None:
    host = spec_of(runtime={"kind": "docker", "image": "ours:1"}).hosts[0]
    check_facts(host, Start("head", NGINX, "new"), Facts())


def _search() -> str:
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs come before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_a_disk_that_cannot_be_looked_at_is_unknown_and_check_says_why(tools: Path) -> None:
    tool(tools, "df", "echo 'df: /: Input/output error' >&2; exit 1")
    facts = read_facts(LocalTransport("here"))
    assert (facts.disk_free_bytes, facts.disk_problem) == (None, "df: /: Input/output error")
    found = _disk(spec_of().hosts[0], facts)
    assert not found.passed
    assert found.text == "could not be checked: df: /: Input/output error"
    assert disk_of(LocalTransport("here"), "/") is None


@pytest.mark.parametrize("said", ["1796000000.", "1796000000.%N", "1796000000.123456789"])
def test_a_clock_without_parts_of_a_second(tools: Path, said: str) -> None:
    tool(tools, "date", f"echo {said}")
    assert int(read_facts(LocalTransport("here")).epoch) == 1796000000


def test_a_clock_that_fails_is_an_error_with_its_words(tools: Path) -> None:
    tool(tools, "date", "echo 'cannot get the time'")
    with pytest.raises(AnswerError, match="`date` cannot be parsed: cannot get the time"):
        read_facts(LocalTransport("here"))


def test_without_awk_no_port_is_taken_for_free(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sh", "uname", "df", "sed", "id", "sort", "date", "getconf"):
        (tools / name).symlink_to(str(shutil.which(name)))
    here = LocalTransport("here")
    monkeypatch.setenv("PATH", str(tools))
    for read in (read_facts, read_listening, read_listeners, lambda at: holders(at, 1)):
        with pytest.raises(CommandError, match="awk and /proc/net/tcp are needed"):
            read(here)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(8, 24 << 30, 8, 24 << 30), "8 CPU, 24.0 GiB, ports are free"),
        (
            Limits(1.5, 2 << 30, 8, 24 << 30),
            "1.5 of 8 CPU, 2.0 GiB of 24.0 GiB (control groups limit it), ports are free",
        ),
    ],
)
def test_check_tells_a_part_of_a_machine_from_a_whole_one(limits: Limits, text: str) -> None:
    facts = Facts(cpus=8, memory_bytes=limits.memory_bytes, limits=limits)
    assert _fits(spec_of().hosts[0], facts, []).text == text
