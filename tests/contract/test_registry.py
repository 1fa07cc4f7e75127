"""A registry that asks for a login: Docker's own registry beside a real daemon."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest

from raycluster.core.errors import ImageError
from raycluster.core.interfaces import Process, RegistryLogin, Secret
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.dockerd import IMAGE, docker_cli, docker_daemon

SERVER = "127.0.0.1:5000"  # Docker speaks plain HTTP to loopback addresses
NAME = f"{SERVER}/acme/serving:1"
USER, PASSWORD = "puller", "a pass:word of the registry"
CONFIG = {
    "version": "0.1",
    "http": {"addr": SERVER},
    "log": {"level": "error"},
}
PROCESS = Process("gateway", ("sh",), image=NAME)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not shutil.which("docker-registry"):
        pytest.skip("needs docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    password = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{USER}:{password}\n")
    auth = {"htpasswd": {"realm": "lab", "path": str(folder / "htpasswd")}}
    store = {"filesystem": {"rootdirectory": str(folder / "store")}}
    config = folder / "config.yml"  # every JSON is YAML
    config.write_text(json.dumps({**CONFIG, "auth": auth, "storage": store}))
    log = shlex.quote(str(folder / "registry.log"))
    beside = f"docker-registry serve {shlex.quote(str(config))} >{log} 2>&1"
    (folder / "dockerd").mkdir()
    with docker_daemon(folder / "dockerd", beside) as socket:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {SERVER: {"auth": login}}}))
        docker_cli(socket, "tag", IMAGE, NAME)
        docker_cli(socket, "--config", str(folder), "push", NAME)
        docker_cli(socket, "rmi", NAME)
        yield socket


@pytest.fixture
def runtime(daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DockerRuntime:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))  # no login of this machine's user
    return DockerRuntime("here", "own", LocalTransport("here"), pull="always", socket=daemon)


def login(server: str = SERVER, password: str = PASSWORD) -> RegistryLogin:
    return RegistryLogin(server, Secret(USER), Secret(password))


def test_the_spec_s_login_pulls_and_is_never_told(runtime: DockerRuntime, daemon: str) -> None:
    told: list[str] = []
    runtime.prepare(replace(PROCESS, login=login()), told.append)
    assert docker_cli(daemon, "images", "-q", NAME).strip()
    assert any("pulling" in line for line in told)
    assert PASSWORD not in repr((told, replace(PROCESS, login=login()), login()))
    docker_cli(daemon, "rmi", NAME)


@pytest.mark.parametrize(
    "given", [None, login(password="wrong"), login(server="ghcr.io")], ids=["none", "bad", "other"]
)
def test_without_the_right_login_the_next_step_is_named(
    runtime: DockerRuntime, given: RegistryLogin | None
) -> None:
    with pytest.raises(ImageError) as refused:
        runtime.prepare(replace(PROCESS, login=given), lambda _: None)
    assert "[registry]" in refused.value.hint
    assert "wrong" not in str(refused.value)
