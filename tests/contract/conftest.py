"""What the contract suites are run against."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycluster.core.interfaces import Runtime, Volume
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.native import NativeRuntime
from raycluster.hosts.transports.local import LocalTransport
from raycluster.hosts.transports.ssh import open_ssh
from raycluster.hosts.transports.ssh_system import open_system
from tests.contract import ssh_client
from tests.contract.dockerd import IMAGE, USR, docker_daemon
from tests.contract.odd_hosts import BARE, NOISY, OddHost
from tests.contract.ssh_client import Start
from tests.contract.sshd import Sshd
from tests.ports import free_port


@dataclass(frozen=True)
class Kind:
    """One kind of runtime: how to make it for a cluster, and what its processes need to run."""

    make_runtime: Callable[[str], Runtime]
    image: str = ""
    volumes: tuple[Volume, ...] = ()


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the socket of a Docker daemon that only the tests use."""
    with docker_daemon(tmp_path_factory.mktemp("dockerd")) as socket:
        yield socket


@pytest.fixture(scope="session")
def odd_sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[OddHost], Sshd]]:
    """Return a function for the servers of odd hosts, one of each."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def one(host: OddHost) -> Sshd:
            server = host.sshd(tmp_path_factory.mktemp("odd")).start()
            stack.callback(server.stop)
            return server

        yield one


@contextlib.contextmanager
def native_on(server: Sshd) -> Iterator[Kind]:
    """Yield supervised processes in the home folder of a host."""
    with contextlib.closing(open_ssh("there", server.options())) as transport:
        yield Kind(
            lambda cluster: NativeRuntime(
                "there", cluster, transport, python=sys.executable, start_on_boot=False
            )
        )


@pytest.fixture
def noisy_native_kind(odd_sshds: Callable[[OddHost], Sshd]) -> Iterator[Kind]:
    """Return supervised processes on a host whose bash speaks, exports and changes the locale."""
    with native_on(odd_sshds(NOISY)) as kind:
        yield kind


@pytest.fixture
def bare_native_kind(odd_sshds: Callable[[OddHost], Sshd]) -> Iterator[Kind]:
    """Return supervised processes on a host with BusyBox and tcsh, and odd names of folders."""
    with native_on(odd_sshds(BARE)) as kind:
        yield kind


@pytest.fixture
def bare_docker_kind(dockerd: str, odd_sshds: Callable[[OddHost], Sshd]) -> Iterator[Kind]:
    """Return containers on such a host."""
    with contextlib.closing(open_ssh("there", odd_sshds(BARE).options())) as transport:
        yield Kind(
            lambda cluster: DockerRuntime("there", cluster, transport, socket=dockerd),
            IMAGE,
            (USR,),
        )


@pytest.fixture
def native_kind(tmp_path: Path) -> Kind:
    """Return supervised processes on this machine."""
    transport = LocalTransport("here")

    def make(cluster: str) -> Runtime:
        root = str(tmp_path / cluster)
        return NativeRuntime(
            "here", cluster, transport, python=sys.executable, start_on_boot=False, root=root
        )

    return Kind(make)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts one more server, with lines for its configuration."""
    with contextlib.ExitStack() as stack:

        def one(extra: str = "", host_keys: tuple[str, ...] = ("ed25519",)) -> Sshd:
            server = Sshd(tmp_path / f"sshd-{free_port()}", extra, host_keys).start()
            stack.callback(server.stop)
            return server

        yield one


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Yield a server that tests share which do not change it."""
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture(params=[open_ssh, open_system], ids=["library", "system"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test connect in this process, and with the system's ssh."""
    monkeypatch.setattr(ssh_client, "open_ssh", request.param)
