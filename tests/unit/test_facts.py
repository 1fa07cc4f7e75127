"""What a host offers, as its own shell tells it, and what is refused for want of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raycluster.apply import check_facts
from raycluster.contracts import Facts, Process
from raycluster.errors import HostError
from raycluster.observe import read_facts
from raycluster.plan import Start
from raycluster.transports.local import LocalTransport
from tests.unit.forecast.given import spec_of

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
    assert "nginx is not installed, which the gateway needs without Docker" in str(caught.value)
    check_facts(host, Start("head", NGINX, "new"), Facts(programs=frozenset({"nginx"})))


def test_with_docker_the_image_brings_the_program() -> None:
    host = spec_of(runtime={"kind": "docker", "image": "ours:1"}).hosts[0]
    check_facts(host, Start("head", NGINX, "new"), Facts())


def _search() -> str:
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
