"""Which socket leads to a host's Docker."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycluster.core.errors import RuntimeUnavailableError
from raycluster.hosts.runtimes import docker_socket
from raycluster.hosts.runtimes.docker_socket import DEFAULT, SocketChoice, choose


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SocketChoice(DEFAULT)),
        ("there /var/run/docker.sock\n", SocketChoice(DEFAULT)),
        (
            "there /run/user/1000/docker.sock\nthere /run/user/1000/podman/podman.sock\n",
            SocketChoice("/run/user/1000/docker.sock", "", ("/run/user/1000/podman/podman.sock",)),
        ),
        (
            "variable unix:///run/user/1000/docker.sock\nthere /var/run/docker.sock\n",
            SocketChoice("/run/user/1000/docker.sock", "DOCKER_HOST of its login", (DEFAULT,)),
        ),
        ("variable unix:///a b/d.sock\n", SocketChoice("/a b/d.sock", "DOCKER_HOST of its login")),
        ("variable unix://\nthere /var/run/docker.sock\n", SocketChoice(DEFAULT)),
        (
            "context unix:///home/jane/.colima/default/docker.sock\n",
            SocketChoice("/home/jane/.colima/default/docker.sock", "the context of its `docker`"),
        ),
        (
            "wanted /home/jane/d.sock\n",
            SocketChoice("/home/jane/d.sock", "`socket` under [runtime]"),
        ),
    ],
)
def test_the_socket_is_the_one_that_docker_itself_would_use(
    text: str, expected: SocketChoice
) -> None:
    assert choose(text, "gpu-1") == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("tcp://10.0.0.5:2375", "Docker by tcp"),
        ("ssh://jane@10.0.0.5", "Docker by ssh"),
        ("npipe:////./pipe/docker_engine", "Docker by npipe"),
        ("fd://", "Docker by fd"),
        ("10.0.0.5:2375", "this address of Docker"),
        ("docker.sock", "this address of Docker"),
    ],
)
@pytest.mark.parametrize("word", ["variable", "context"])
def test_another_machines_docker_is_refused_by_its_name(word: str, value: str, kind: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"{kind} is not supported") as caught:
        choose(f"{word} {value}\nthere {DEFAULT}\n", "gpu-1")
    assert value in caught.value.what
    assert caught.value.where == "gpu-1"
    assert "[runtime] socket" in caught.value.hint


def test_a_context_that_cannot_be_read_is_not_taken_for_none() -> None:
    text = f'broken context "gone": context not found\nthere {DEFAULT}\n'
    with pytest.raises(RuntimeUnavailableError, match='cannot be read: context "gone"'):
        choose(text, "gpu-1")


@pytest.fixture
def home() -> Iterator[Path]:
    """Yield a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="a b'") as folder:
        yield Path(folder)


def asked(home: Path, wanted: str = "", **env: str) -> SocketChoice:
    base = {"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home / "run")}
    # what this machine has must not count
    script = docker_socket._LOOK.replace("/var/run/docker.sock", f"{shlex.quote(str(home))}/d.sock")
    script = script.replace("/run/podman/podman.sock", "/nonexistent/podman.sock")
    done = subprocess.run(
        ("sh", "-c", script, "sh", wanted), env={**base, **env}, capture_output=True, check=True
    )
    return choose(done.stdout.decode(), "here")


def listen(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


@pytest.mark.parametrize(
    "place",
    ["run/docker.sock", ".docker/run/docker.sock", ".docker/desktop/docker.sock",
     ".colima/default/docker.sock", ".rd/docker.sock", ".orbstack/run/docker.sock",
     "run/podman/podman.sock"],
)  # fmt: skip
def test_a_socket_in_a_known_place_is_found(home: Path, place: str) -> None:
    assert asked(home).path == DEFAULT
    assert asked(home).named == ""
    there = listen(home / place)
    assert asked(home) == SocketChoice(str(there))


def test_the_hosts_own_docker_comes_first_and_the_login_before_it(home: Path) -> None:
    rootless, own = listen(home / "run/docker.sock"), listen(home / "d.sock")
    assert asked(home) == SocketChoice(str(own), "", (str(rootless),))
    told = asked(home, DOCKER_HOST=f"unix://{rootless}")
    assert told == SocketChoice(str(rootless), "DOCKER_HOST of its login", (str(own),))


def test_the_context_in_use_is_asked_of_docker(home: Path) -> None:
    own, there = listen(home / "d.sock"), listen(home / "mine.sock")
    programs = home / "bin"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(f"#!/bin/sh\necho {shlex.quote(f'unix://{there}')}\n")
    docker.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    assert asked(home, PATH=path).path == str(own)
    assert asked(home, PATH=path, DOCKER_CONTEXT="mine").path == str(there)
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"currentContext": "mine"}')
    assert asked(home, PATH=path).path == str(there)
    docker.write_text("#!/bin/sh\necho 'context \"mine\" does not exist' >&2; exit 1\n")
    with pytest.raises(RuntimeUnavailableError, match='context "mine" does not exist'):
        asked(home, PATH=path)


def test_a_path_in_the_home_folder_is_that_of_the_host(home: Path) -> None:
    assert asked(home, "~/my docker.sock").path == f"{home}/my docker.sock"
