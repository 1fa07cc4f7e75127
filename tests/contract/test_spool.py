"""Between Docker and a file: the program that is sent to hosts, beside a real daemon."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.distribution.images import archived_layers
from raycluster.core.errors import ImageError
from raycluster.hosts.runtimes import docker_image_staging
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.dockerd import IMAGE, docker_cli

NAME = "acme/spooled:1"


def run(*arguments: str) -> list[dict[str, Any]]:
    argv = (sys.executable, "-I", str(docker_image_staging.__file__), *arguments)
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_image_goes_to_a_file_and_back(dockerd: str, tmp_path: Path) -> None:
    runtime = DockerRuntime("here", "own", LocalTransport("here"), socket=dockerd)
    docker_cli(dockerd, "tag", IMAGE, NAME)
    layers, file = runtime.layers(NAME), tmp_path / "saved.tar"
    assert layers
    end = run("save", dockerd, str(file), NAME)[-1]
    content = file.read_bytes()
    assert end == {"size": len(content), "digest": hashlib.sha256(content).hexdigest()}
    assert file.stat().st_mode & 0o777 == 0o600
    assert archived_layers(file, NAME) == layers
    docker_cli(dockerd, "rmi", NAME)
    assert runtime.layers(NAME) == ()
    assert run("load", dockerd, str(file)) == [{"loaded": len(content)}]
    assert runtime.layers(NAME) == layers
    docker_cli(dockerd, "rmi", NAME)


def test_an_image_goes_through_this_machine_too(dockerd: str) -> None:
    runtime = DockerRuntime("here", "own", LocalTransport("here"), socket=dockerd)
    docker_cli(dockerd, "tag", IMAGE, NAME)
    layers = runtime.layers(NAME)
    archive = b"".join(runtime.save(NAME))
    docker_cli(dockerd, "rmi", NAME)
    runtime.load(iter([archive]))
    assert runtime.layers(NAME) == layers
    docker_cli(dockerd, "rmi", NAME)


def test_what_docker_refuses_is_told(dockerd: str, tmp_path: Path) -> None:
    (told,) = run("save", dockerd, str(tmp_path / "x"), "acme/none:1")
    assert "not exist" in told["error"] or "No such image" in told["error"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad").write_bytes(b"no archive at all" * 100)
    (told,) = run("load", dockerd, str(tmp_path / "bad"))
    assert told["error"]
    (told,) = run("load", str(tmp_path / "no.sock"), str(tmp_path / "bad"))
    assert told["error"].startswith("Docker: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"x" * 2000, "is not an archive written by `docker save`"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    file = tmp_path / "image.tar"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ImageError, match=expected) as refused:
        archived_layers(file, NAME)
    assert refused.value.where == str(file)


def test_an_archive_of_another_image_names_what_it_holds(dockerd: str, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    docker_cli(dockerd, "save", "-o", str(file), IMAGE)
    with pytest.raises(ImageError, match=f"contains {IMAGE}, not acme/spooled:1"):
        archived_layers(file, NAME)


def test_it_can_be_read_by_an_old_python() -> None:
    assert ast.parse(Path(docker_image_staging.__file__).read_text(), feature_version=(3, 8)).body
