"""Hosts that hand files to one another: what a hostile one among them can do to the laptop, which
leads the exchange, and to the others, who take from it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution import models, peer_transfer
from raycluster.apply.distribution.images import Errand, _FromFile, _FromHost
from raycluster.core.errors import RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import Address, ByteStream, Channel, Completed, Process
from raycluster.serve import transfer
from raycluster.serve.model_refs import ModelRef
from raycluster.serve.transfer import Item, Shelf, Taker, TransferError
from tests.hostile.attempt import HangError, in_time
from tests.hostile.endpoint import Endpoint, hostile, whole
from tests.hostile.host import SILENT
from tests.hostile.spoil import Spoiler

RUNS = 150
HOSTS = ("one", "two", "three")
CONTENT = b"an image\n" * 9
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LAYERS = ("sha256:" + "1" * 64,)
MODEL = ModelRef(source="org/model")
LISTED = {"commit": "c" * 40, "files": [{"name": "a.bin", "size": len(CONTENT), "digest": DIGEST}]}


class Host:
    """A host whose programs say what real ones do, but for what is spoiled: its transport, the
    inside of its node and its Docker, all in one."""

    def __init__(self, name: str, spoil: Spoiler, *, has: bool) -> None:
        self.host = SimpleNamespace(name=name, role="worker")
        self.address, self.transport, self.runtime = "10.0.0.1", self, self
        self._spoil, self._has = spoil, has
        self._ordered: dict[str, Any] = {}

    def inside(self, _role: str) -> Host:
        return self

    def layers(self, _image: str) -> tuple[str, ...]:
        return LAYERS if self._has else ()

    def load(self, pieces: Iterable[bytes]) -> None:
        self._has = bool([*pieces])

    def save(self, _image: str) -> Iterator[bytes]:
        yield CONTENT

    def pullable(self, _process: Process) -> bool:
        return True

    def prepare(self, _process: Process, _tell: object) -> None:
        self._has = True

    def socket_path(self) -> str:
        return "/run/docker.sock"

    def put(self, _path: str, content: bytes, *, mode: int = 0o644) -> None:
        del mode
        if content.startswith(b"{"):
            self._ordered = json.loads(content)

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, input: bytes = b"", **_: object) -> Completed:
        if input.startswith(b"{"):
            self._ordered = json.loads(input)
        script = argv[2] if argv[:2] == ("sh", "-c") else ""
        said = b""
        if argv == ("id", "-u"):
            said = b"0\n"
        elif "mktemp" in script:
            said = b"folder /var/tmp/raycluster-0-demo\npython\n"
        elif "wc -c" in script and ">>" not in script:
            said = b"0\n"
        return Completed(0, self._spoil(said) if said else b"")

    def stream(
        self, argv: Sequence[str], *, quiet: float | None = None, **_: object
    ) -> Iterator[tuple[Channel, bytes]]:
        said = self._spoil(
            b"".join(json.dumps(line).encode() + b"\n" for line in self._lines(argv))
        )
        for start in range(0, len(said), 4096):
            yield "stdout", said[start : start + 4096]
        if quiet is not None and said.endswith(SILENT):
            raise RayclusterError("silent", where=self.host.name)

    def _lines(self, argv: Sequence[str]) -> list[dict[str, Any]]:
        size = len(CONTENT)
        if "load" in argv:
            self._has = True
            return [{"here": size}]
        if "save" in argv:
            return [{"here": 9}, {"size": size, "digest": DIGEST}]
        if "raycluster.serve.fetch" in argv:
            result = {"version": "c" * 40, "bytes": size, "fetched": True, "note": ""}
            return [{"model": "org/model", "result": result}]
        if "listed" in self._ordered and self._ordered["listed"] is None:
            return [{"held": LISTED if self._has else None}]
        self._has = True
        return [{"here": 9, "total": size}, {"done": True, "here": size, "total": size}] * 3


class Fleet:
    """What is needed of a fleet."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.hosts = hosts

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def each(self, names: Iterable[str], work: Callable[[Any], Any]) -> dict[str, Any]:
        def done(name: str) -> object:
            try:
                return work(self.hosts[name])
            except RayclusterError as error:
                return error

        return {name: done(name) for name in names}


def images_from_a_host(work: ApplyContext, _: Path) -> None:
    process = SimpleNamespace(image="vllm:1", role="worker")
    hosts = cast(Mapping[str, Process], dict.fromkeys(HOSTS, process))
    _FromHost(work, "vllm:1", hosts).bring()


def images_from_a_file(work: ApplyContext, file: Path) -> None:
    _FromFile(Errand(work, "vllm:1", LAYERS), file, HOSTS).bring()


def a_model(work: ApplyContext, _: Path) -> None:
    asking = models.Asking(work, "/raycluster/secrets.json", verify=False)
    done = models._hand_on(asking, MODEL, HOSTS)
    models.compare({host: {MODEL.source: result} for host, result in done.items()})


LED = (images_from_a_host, images_from_a_file, a_model)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An archive."""
    path = tmp_path / "image.tar"
    path.write_bytes(CONTENT)
    return path


def led(lead: Callable[[ApplyContext, Path], None], file: Path, seed: int | None) -> list[Event]:
    """Lead an exchange, and return what was told of it."""
    spoil = Spoiler(seed) if seed is not None else cast(Spoiler, lambda said: said)
    hosts = {n: Host(n, spoil, has=n == "one" and lead is not images_from_a_file) for n in HOSTS}
    told: list[Event] = []
    given = SimpleNamespace(images="peer", models="peer", folder="/var/tmp")
    spec = SimpleNamespace(
        distribution=given, cluster=SimpleNamespace(name="demo"), ports=SimpleNamespace(transfer=1)
    )
    spec.env = {}
    work = SimpleNamespace(spec=spec, fleet=Fleet(hosts), listen=told.append, tell=lambda _: print)
    lead(cast(ApplyContext, work), file)
    return told


@pytest.mark.parametrize("lead", LED)
def test_an_exchange_among_honest_hosts(
    lead: Callable[[ApplyContext, Path], None], file: Path
) -> None:
    told = led(lead, file, None)
    assert {e.subject for e in told} >= {"two", "three"}
    assert not [e for e in told if e.kind == "note"]


@pytest.mark.parametrize("lead", LED)
def test_whatever_hosts_say_of_an_exchange_it_ends(
    lead: Callable[[ApplyContext, Path], None], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BEGIN_S", "PARTING_S", "STUCK_S"):
        monkeypatch.setattr(peer_transfer, name, 0.2)
    crashed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", crashed.append)
    for seed in range(RUNS):
        try:
            with in_time():
                told = led(lead, file, seed)
            repr(told).encode()
        except RayclusterError as error:
            str(error).encode()
        except (Exception, HangError) as error:
            error.add_note(f"seed {seed}")
            raise
        assert not crashed, (seed, crashed)


def take(item: Item, peers: list[tuple[str, int]]) -> None:
    """Take a file; on a machine that is busy the honest peer may be given up once too often."""
    for last in (False, False, True):
        try:
            return Taker(Shelf([item]), peers, "token").take()
        except TransferError:
            assert not item.path.exists()
            if last:
                raise
    return None


@pytest.mark.parametrize("seeds", [range(30), range(30, 60)])
def test_a_hostile_peer_keeps_nobody_from_a_file_that_another_holds(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STALL_S": 0.3, "CONNECT_S": 5.0, "EARLY_S": 0.1}.items():
        monkeypatch.setattr(transfer, name, value)
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    held = Shelf([Item(source, len(CONTENT), DIGEST)])
    held.set(0, len(CONTENT))
    good = transfer.serve(held, "token", "127.0.0.1", 0)
    place = ("127.0.0.1", int(good.server_address[1]))
    good.RequestHandlerClass.place = place  # type: ignore[attr-defined]  # its port is known now

    def well(_path: str, _body: bytes, _key: str) -> Iterator[bytes]:
        yield whole(CONTENT, status="206 Partial Content")

    try:
        with Endpoint(well) as bad:
            other = ("127.0.0.1", int(bad.url.rpartition(":")[2]))
            for seed in seeds:
                bad.answer = hostile(seed, well)
                item = Item(tmp_path / f"taken-{seed}", len(CONTENT), DIGEST)
                try:
                    with in_time():
                        take(item, [other, place])
                    assert item.path.read_bytes() == CONTENT
                    assert not item.part.exists()
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise
    finally:
        good.shutdown()
        good.server_close()
