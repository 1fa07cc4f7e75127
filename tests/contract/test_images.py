"""Images for two hosts: a real Docker daemon for each, loopback addresses between them."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.image_staging import PIECE
from raycluster.apply.distribution.images import archived_layers, bring_images
from raycluster.core.events import Event
from raycluster.core.interfaces import Channel, Completed, Process, Secret
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.transports.local import LocalTransport
from raycluster.serve.transfer import PART
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.contract.dockerd import docker_cli, docker_daemon
from tests.ports import free_port

IMAGE = "acme/large:1"
SIZE = 40_000_000
SHARED = "/var/tmp"
NAMES = ("head", "second")


class Apart(LocalTransport):
    """This machine, as a host that has a /var/tmp of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._folder = str(folder)

    def _there(self, argv: Sequence[str]) -> list[str]:
        return [word.replace(SHARED, self._folder) for word in argv]

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        return super().run(self._there(argv), **options)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        return super().stream(self._there(argv), env=env, quiet=quiet)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        placed = content.replace(f'"{SHARED}'.encode(), f'"{self._folder}'.encode())
        super().put(path.replace(SHARED, self._folder), placed, mode=mode)


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(docker_daemon(tmp_path_factory.mktemp(name)))
            for name in NAMES
        }


@pytest.fixture(scope="module")
def archive(daemons: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `docker save` with an image that no host has."""
    made, file = io.BytesIO(), tmp_path_factory.mktemp("archive") / "image.tar"
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("weights")
        info.size = SIZE
        tar.addfile(info, io.BytesIO(os.urandom(SIZE)))
    docker_cli(daemons["head"], "import", "-", IMAGE, input=made.getvalue())
    docker_cli(daemons["head"], "save", "-o", str(file), IMAGE)
    docker_cli(daemons["head"], "rmi", IMAGE)
    return file


class Hosts:
    """Both hosts, what they hold, and bringing an image to them."""

    def __init__(self, daemons: Mapping[str, str], folder: Path) -> None:
        self._daemons = daemons
        self.folders = {name: folder / name for name in NAMES}
        self.port = free_port()

    def spool(self, name: str) -> Path:
        return self.folders[name] / f"raycluster-{os.getuid()}-q"

    def layers(self, name: str) -> tuple[str, ...]:
        socket = self._daemons[name]
        return DockerRuntime(name, "q", LocalTransport(name), socket=socket).layers(IMAGE)

    def load(self, name: str, archive: Path) -> None:
        docker_cli(self._daemons[name], "load", input=archive.read_bytes())

    def forget(self) -> None:
        for name in NAMES:
            if self.layers(name):
                docker_cli(self._daemons[name], "rmi", IMAGE)

    def bring(self, *to: str, **distribution: str) -> list[Event]:
        """Bring the image to hosts, or all, as the tables say; return what was told."""
        archive = distribution.pop("archive", None)
        hosts = [
            {"host": n, "private_address": f"127.0.0.{i}"} for i, n in enumerate(NAMES, start=2)
        ]
        table = {
            "cluster": {"name": "q"},
            "runtime": {"image": IMAGE, "pull": "never", "archive": archive},
            "head": hosts[0],
            "workers": [{**hosts[1], "name": "second"}],
            "distribution": distribution,
            "ports": {"transfer": self.port},
        }
        spec, told = ClusterSpec.model_validate(table), list[Event]()
        with Fleet("q", 4) as fleet:
            fleet.reach(spec.hosts, lambda connected: connected.address)
            work = ApplyContext(spec, fleet, Secret("t"), Secrets(), told.append)
            starting = [h for h in spec.hosts if not to or h.name in to]
            bring_images(work, {h.name: [Process(h.role, (), image=IMAGE)] for h in starting})
        return told


@pytest.fixture
def hosts(
    daemons: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hosts]:
    made = Hosts(daemons, tmp_path)
    for folder in made.folders.values():
        folder.mkdir()
    monkeypatch.setattr(
        connect, "TRANSPORTS", {"ssh": lambda host, ask: Apart(host.name, made.folders[host.name])}
    )
    monkeypatch.setattr(
        connect,
        "RUNTIMES",
        {
            "docker": lambda host, cluster, transport: DockerRuntime(
                host.name, cluster, transport, pull="never", socket=daemons[host.name]
            )
        },
    )
    yield made
    made.forget()
    assert not [path for folder in made.folders.values() for path in folder.iterdir()]


def notes(told: list[Event]) -> list[str]:
    return [f"{event.subject}: {event.text}" for event in told if event.kind == "note"]


def sent(told: list[Event]) -> list[str]:
    return [event.subject for event in told if event.text.endswith("MB sent")]


def test_a_file_goes_to_one_host_and_on_from_there(hosts: Hosts, archive: Path) -> None:
    told = hosts.bring(archive=str(archive))
    layers = archived_layers(archive, IMAGE)
    assert [hosts.layers(name) for name in NAMES] == [layers, layers]
    assert {*sent(told)} == {"head"}
    assert notes(told) == []
    assert hosts.bring(archive=str(archive)) == [], "what is there is not brought again"


def test_a_broken_upload_goes_on_where_it_ended(hosts: Hosts, archive: Path) -> None:
    content = archive.read_bytes()
    hosts.spool("head").mkdir(mode=0o700)
    digest = hashlib.sha256(content).hexdigest()[:16]
    (hosts.spool("head") / f"image-{digest}.tar{PART}").write_bytes(content[: 2 * PIECE])
    told = hosts.bring(archive=str(archive))
    assert sent(told) == ["head"], "one piece of three"
    assert hosts.layers("second") == hosts.layers("head") != ()


def test_a_damaged_rest_of_an_earlier_run_is_not_loaded(hosts: Hosts, archive: Path) -> None:
    content = archive.read_bytes()
    hosts.spool("head").mkdir(mode=0o700)
    digest = hashlib.sha256(content).hexdigest()[:16]
    (hosts.spool("head") / f"image-{digest}.tar{PART}").write_bytes(bytes(PIECE))
    told = hosts.bring(archive=str(archive))
    assert hosts.layers("second") == hosts.layers("head") == archived_layers(archive, IMAGE)
    assert notes(told) == []


def test_others_take_an_image_from_the_host_that_has_it(hosts: Hosts, archive: Path) -> None:
    hosts.load("second", archive)
    told = hosts.bring(images="peer")
    assert hosts.layers("head") == hosts.layers("second") != ()
    assert notes(told) == []


def test_a_host_that_is_added_takes_an_image_from_one_that_runs(
    hosts: Hosts, archive: Path
) -> None:
    hosts.load("head", archive)
    assert notes(hosts.bring("second", images="peer")) == []
    assert hosts.layers("second") == hosts.layers("head") != ()


def test_a_host_that_cannot_take_part_gets_it_through_this_machine(
    hosts: Hosts, archive: Path
) -> None:
    with socket.create_server(("127.0.0.3", hosts.port)):
        told = hosts.bring(archive=str(archive))
    assert hosts.layers("second") == hosts.layers("head") != ()
    (note,) = notes(told)
    assert note.startswith(f"second: {IMAGE} cannot be copied between the hosts: cannot listen")
    assert "copying it through this machine" in note
