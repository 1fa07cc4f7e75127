"""Where a host's Docker is found, and what is said of one that does not respond."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import Process
from raycluster.hosts.runtimes import docker_containers as module
from raycluster.hosts.runtimes import docker_errors
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_socket import SocketChoice
from raycluster.hosts.runtimes.docker_trouble import LOOK, explain, seen
from raycluster.hosts.transports.local import LocalTransport
from raycluster.hosts.transports.ssh import SshTransport, open_ssh
from tests.contract.dockerd import IMAGE, USR
from tests.contract.sshd import Login, Sshd

HEAD = Process("head", ("sh", "-c", "sleep 60"), image=IMAGE, volumes=(USR,))
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder of an odd name, short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="a 'b $c") as made:
        yield Path(made)


@contextmanager
def login(folder: Path, bashrc: str) -> Iterator[SshTransport]:
    """Log in to a host whose shell reads these lines."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a home of its own")
    home = folder / "home"
    home.mkdir()
    (home / ".bashrc").write_text(bashrc)
    keys = Path(tempfile.mkdtemp())
    server = Sshd(keys, login=Login(home, shutil.which("bash") or "/bin/bash")).start()
    transport = open_ssh("gpu-1", server.options())
    try:
        yield transport
    finally:
        transport.close()
        server.stop()
        shutil.rmtree(keys)


def test_the_docker_of_the_login_is_used(dockerd: str, folder: Path) -> None:
    there = folder / "my docker.sock"
    there.symlink_to(dockerd)
    value = shlex.quote(f"unix://{there}")
    with login(folder, f"echo Welcome\nexport DOCKER_HOST={value}\n") as transport:
        runtime = DockerRuntime("gpu-1", "elsewhere", transport)
        assert runtime.socket_path() == str(there)
        assert runtime.observe() == ()
        assert f"at {there}" in runtime.verify([HEAD])[0]
        assert runtime.outlook(HEAD, ()).there


def test_a_docker_of_another_machine_is_refused_by_its_name(folder: Path) -> None:
    with login(folder, "export DOCKER_HOST=tcp://10.0.0.5:2375\n") as transport:
        runtime = DockerRuntime("gpu-1", "elsewhere", transport)
        with pytest.raises(RuntimeUnavailableError, match=r"DOCKER_HOST .* tcp://10.0.0.5") as said:
            runtime.observe()
    assert said.value.where == "gpu-1"
    assert "[runtime] socket" in said.value.hint


def test_the_specs_socket_comes_before_the_logins(dockerd: str, folder: Path) -> None:
    with login(folder, "export DOCKER_HOST=tcp://10.0.0.5:2375\n") as transport:
        (folder / "home/d.sock").symlink_to(dockerd)
        for wanted in (dockerd, "~/d.sock"):
            assert DockerRuntime("gpu-1", "q", transport, socket=wanted).observe() == ()


def test_a_good_engine_passes_and_tells_what_is_slow(dockerd: str) -> None:
    runtime = DockerRuntime("here", "own", LocalTransport("here"), socket=dockerd)
    first, *rest = runtime.verify([HEAD])
    assert first.startswith("Docker 2")
    assert [each for each in rest if "storage driver is vfs" in each]


@contextmanager
def daemon(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Take connections at a socket, and do this with each."""
    kept: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                kept.append(listener.accept()[0])
                answer(kept[-1])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in kept:
                each.close()


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        pytest.param(lambda _: None, "hangs: it accepts connections", id="silent"),
        pytest.param(lambda stream: stream.close(), "nothing responds at", id="closes"),
    ],
)
def test_a_daemon_that_takes_connections_alone_is_told(
    folder: Path,
    answer: Callable[[socket.socket], None],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 1.0)
    monkeypatch.setattr(docker_errors, "LOOK", LOOK.replace("timeout 5", "timeout 1"))
    path = folder / "docker.sock"
    with daemon(path, answer):
        runtime = DockerRuntime("here", "own", LocalTransport("here"), socket=str(path))
        with pytest.raises(RuntimeUnavailableError, match=what) as caught:
            runtime.observe()
    assert "restart" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (0o660, "the socket belongs to group root"),
        (0o600, "only root has"),
        (0o666, "nothing responds"),
    ],
)
def test_a_user_who_may_not_use_the_socket_is_told_why(folder: Path, mode: int, what: str) -> None:
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(mode)
    for folder_mode, expected in ((0o755, what), (0o700, f"has no access to {folder}")):
        folder.chmod(folder_mode)
        script = ("sh", "-c", LOOK, "sh", str(path))
        done = subprocess.run(
            script, capture_output=True, check=True, user=NOBODY, group=NOBODY, extra_groups=()
        )
        found = explain(seen(done.stdout.decode()), SocketChoice(str(path)))
        assert found
        assert expected in found[0]
