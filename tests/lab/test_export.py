"""An export for Docker Compose, brought up on a host by the real program, without raycluster."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab, script, wait_for
from tests.lab.image import IMAGE
from tests.lab.specs import TINY, cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ENGINE = "transformers"  # which starts sooner than vLLM
KEY = "sk-lab-0123456789abcdef"
GATEWAY = f"""
[gateway]
image = "{IMAGE}"
api_keys = {{ alice = "env:ALICE_KEY" }}
"""


@dataclass
class Project:
    """The exported project of one host, in a folder of root's on that host."""

    host: Host

    def __call__(self, *argv: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run Docker Compose in the project's folder."""
        there = 'cd /root/export/head && exec /root/docker-compose "$@"'
        return self.host.run(("sh", "-c", there, "compose", *argv), timeout=timeout)


@pytest.fixture(scope="module")
def project(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """An export with secrets, on a host that has Docker Compose; all of it is removed again."""
    host, folder = lab.docker_hosts[0], tmp_path_factory.mktemp("export")
    spec = folder / "cluster.toml"
    toml = cluster_toml(lab, [host], name="moved", tiny=True, engine=ENGINE, extra=GATEWAY)
    spec.write_text(toml)
    cli = make_cli(lab, folder / "home", {"ALICE_KEY": KEY})
    root = host.folder / "disk/root"
    done = cli("export", "compose", spec, "--with-secrets", "-o", root / "export")
    assert done.returncode == 0, done.stderr
    shutil.copy(script("compose"), root / "docker-compose")
    made = Project(host)
    try:
        yield made
    finally:
        made("down", "--volumes", "--timeout", "5")
        shutil.rmtree(root / "export")
        (root / "docker-compose").unlink()


def test_compose_brings_it_up_and_the_gateway_answers(project: Project) -> None:
    up = project("up", "--detach", "--no-color")
    assert up.returncode == 0, up.stderr
    status = project.host.check("docker", "wait", "moved-deploy-1", timeout=400).strip()
    assert status == "0", project("logs", "--tail", "40", "deploy", "head").stdout
    body = {"model": TINY, "prompt": "Once", "max_tokens": 4, "ignore_eos": True}
    url = f"http://{project.host.address}:8080/v1/completions"
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.post(url, json=body).status_code == 401

        def ask() -> httpx.Response:
            return client.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"})

        # HAProxy learns its routes a moment after the replicas run.
        wait_for(lambda: ask().status_code != 503, "a way to the model", 60)
        answer = ask()
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 4
        assert answer.headers["x-raycluster-engine"] == ENGINE
    names = {f"moved-{name}-1" for name in ("deploy", "gateway", "head", "prepare")}
    assert set(project.host.containers()) == names


def test_its_services_are_healthy_and_hold_no_secret_that_docker_shows(project: Project) -> None:
    names = project.host.containers()

    def shown() -> list[dict[str, Any]]:
        return list(json.loads(project.host.check("docker", "inspect", *names)))

    def health() -> dict[str, str]:
        states = {c["Name"]: c["State"] for c in shown()}
        return {n: s["Health"]["Status"] for n, s in states.items() if "Health" in s}

    healthy = {"/moved-head-1": "healthy", "/moved-gateway-1": "healthy"}
    wait_for(lambda: health() == healthy, "Docker to have looked", 60)
    token = (Path(project.host.folder) / "disk/root/export/head/secrets/head/token").read_text()
    assert len(token) == 64
    for secret in (KEY, token):
        assert secret not in json.dumps(shown())


def test_an_images_user_other_than_root_reads_its_files_and_makes_folders(project: Project) -> None:
    script = "id -u; cat /raycluster/token | wc -c; mkdir /raycluster/own; ls -ld /raycluster/own"
    beside = ("run", "--rm", "--no-deps", "-T", "--user", "1000:1000", "--entrypoint", "sh")
    done = project(*beside, "head", "-c", script)
    assert done.returncode == 0, done.stderr
    uid, length, folder = done.stdout.splitlines()
    assert (uid, length, folder.split()[2]) == ("1000", "64", "1000")


def test_nothing_stays_after_down(project: Project) -> None:
    down = project("down", "--volumes", "--timeout", "3")
    assert down.returncode == 0, down.stderr
    assert project.host.containers() == []
    assert project.host.check("docker", "volume", "ls", "-q") == ""
