"""Who takes from whom, and an exchange between programs that really run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.distribution.peer_transfer import TransferPeer, all_private, exchange, ways
from raycluster.core.interfaces import Channel, Completed
from raycluster.hosts.transports.local import LocalTransport
from raycluster.serve import transfer

CONTENT = random.Random(6).randbytes(2_500_000)


@pytest.mark.parametrize(
    ("holders", "takers", "expected"),
    [
        (["a"], ["b", "c"], {"b": ("a",), "c": ("b", "a")}),
        (
            ["a", "b"],
            ["c", "d", "e"],
            {"c": ("a", "b"), "d": ("b", "a"), "e": ("c", "a", "b")},
        ),
        (["a"], [], {}),
        (["a", "b", "c"], ["d"], {"d": ("a", "b", "c")}),
    ],
)
def test_takers_stand_in_a_row_behind_each_holder(
    holders: list[str], takers: list[str], expected: dict[str, tuple[str, ...]]
) -> None:
    assert ways(holders, takers) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["10.0.0.1", "192.168.1.2", "fd00::1"], True),
        (["100.64.0.7", "172.16.0.1"], True),
        (["10.0.0.1", "8.8.8.8"], False),
        (["2606:4700::1"], False),
        (["10.0.0.1", "gpu-1"], False),
    ],
)
def test_public_addresses_are_noticed(addresses: list[str], expected: bool) -> None:
    assert all_private(addresses) is expected


class Places:
    """Folders as hosts: a loopback address for each, and one manifest with a path per host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders: dict[str, dict[str, Any]] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    def party(self, number: int) -> TransferPeer:
        name = f"h{number}"
        path = self.folder / name / "order.json"
        path.parent.mkdir()
        digest = hashlib.sha256(CONTENT).hexdigest()
        item = {"path": str(path.with_name("big")), "size": len(CONTENT), "digest": digest}

        def deliver(content: bytes) -> None:
            self.orders[name] = json.loads(content)
            path.write_text(json.dumps({**self.orders[name], "items": [item]}))

        argv = (sys.executable, "-I", str(transfer.__file__), str(path))
        return TransferPeer(name, f"127.0.0.{number}", LocalTransport(name), argv, {}, deliver)

    def read(self, number: int) -> bytes:
        return (self.folder / f"h{number}" / "big").read_bytes()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_three_hosts_take_what_one_holds(places: Places) -> None:
    holder, takers = places.party(1), [places.party(n) for n in (2, 3, 4)]
    (places.folder / "h1/big").write_bytes(CONTENT)
    told: list[tuple[str, Any]] = []
    problems = exchange(
        [holder], takers, places.port, {}, lambda host, line: told.append((host, line))
    )
    assert problems == {}
    assert [places.read(n) for n in (2, 3, 4)] == [CONTENT] * 3
    finished = [host for host, line in told if line["done"].flag() and host != "h1"]
    assert sorted(finished) == ["h2", "h3", "h4"]
    assert not list(places.folder.glob("*/order.json")), "the token does not stay"
    tokens = {order["token"] for order in places.orders.values()}
    assert len(tokens) == 1
    assert {len(token) for token in tokens} == {64}
    assert places.orders["h3"]["peers"] == [["127.0.0.2", places.port], ["127.0.0.1", places.port]]


def test_a_port_that_is_taken_is_said_and_nobody_waits(places: Places) -> None:
    holder, taker = places.party(1), places.party(2)
    (places.folder / "h1/big").write_bytes(CONTENT)
    with socket.create_server(("127.0.0.1", places.port)):
        problems = exchange([holder], [taker], places.port, {}, lambda *_: None)
    assert "cannot listen on 127.0.0.1" in problems["h1"]
    assert problems["h2"] == "no host provides it"


def test_a_program_that_breaks_is_told_by_its_last_words(places: Places) -> None:
    holder, taker = places.party(1), places.party(2)
    (places.folder / "h1/big").write_bytes(CONTENT)
    broken = TransferPeer(
        "h2",
        taker.address,
        taker.shell,
        (sys.executable, "-c", "raise ValueError('no such thing')"),
        {},
        lambda _: None,
    )
    problems = exchange([holder], [broken], places.port, {}, lambda *_: None)
    assert problems == {"h2": "ValueError: no such thing"}


@contextlib.contextmanager
def catch_threading_exception() -> Iterator[list[type[BaseException] | None]]:
    """Yield the kinds of what ends threads meanwhile."""
    caught: list[type[BaseException] | None] = []
    former, threading.excepthook = threading.excepthook, lambda told: caught.append(told.exc_type)
    try:
        yield caught
    finally:
        threading.excepthook = former


@dataclass
class Saying:
    """A shell whose programs say this, and then nothing."""

    said: bytes

    def run(self, *_: object, **__: object) -> Completed:
        return Completed(0)

    def stream(self, *_: object, **__: object) -> Iterator[tuple[Channel, bytes]]:
        yield "stdout", self.said

    def put(self, *_: object, **__: object) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"{cut\n", "the answer of the program that hands files on cannot be parsed: {cut"),
        (b'{"here": [], "total": {}}\n{"done": 7}\n', "its program exited early"),
        (b"{" * 100_000 + b"\n", "cannot be parsed"),
        (b"x" * (9 << 20), "sent more than 8 MiB"),
        (b'{"error": {"a": []}}\n', "no reason given"),
        (b"\xff\xfe\n", "its program exited early"),
    ],
)
def test_nonsense_from_a_program_ends_its_part(said: bytes, why: str) -> None:
    holder = TransferPeer("h1", "127.0.0.1", Saying(said), ("x",), {}, lambda _: None)
    taker = TransferPeer("h2", "127.0.0.2", Saying(b""), ("x",), {}, lambda _: None)
    problems = exchange([holder], [taker], 1, {}, lambda *_: None)
    assert why in problems["h1"]
    assert problems["h2"]


def test_whatever_a_report_does_with_a_line_nobody_waits_for_ever() -> None:
    def report(*_: object) -> None:
        raise RuntimeError("of the report")

    party = TransferPeer("h1", "127.0.0.1", Saying(b'{"here": 1}\n'), ("x",), {}, lambda _: None)
    with catch_threading_exception() as caught:
        problems = exchange([party], [], 1, {}, report)
    assert problems == {"h1": "its output was not read to the end"}
    assert caught == [RuntimeError]


def test_an_exchange_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycluster.apply.distribution.peer_transfer.STUCK_S", 0.0)
    go = threading.Event()

    class Waiting(Saying):
        def stream(self, *_: object, **__: object) -> Iterator[tuple[Channel, bytes]]:
            yield "stdout", b'{"here": 5, "total": 10}\n'
            go.wait(30)

    monkeypatch.setattr("raycluster.apply.distribution.peer_transfer.PARTING_S", 0.0)
    party = TransferPeer("h1", "127.0.0.1", Waiting(b""), ("x",), {}, lambda _: None)
    try:
        assert exchange([party], [], 1, {}, lambda *_: None) == {"h1": "no data arrived for 0 s"}
    finally:
        go.set()


def test_no_more_is_kept_of_a_file_than_it_has(places: Places) -> None:
    """A peer that answers five asked bytes with two hundred million."""
    taker = places.party(2)
    digest = hashlib.sha256(b"right").hexdigest()
    path = places.folder / "h2" / "small"
    most: list[int] = []
    liar = socket.create_server(("127.0.0.1", 0))

    def lie() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = liar.accept()
                with stream, contextlib.suppress(OSError):
                    stream.recv(65536)
                    size = 200_000_000
                    stream.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: %d\r\n\r\n" % size)
                    for _ in range(200):
                        stream.sendall(bytes(1_000_000))
                        part = path.with_name(f"small{transfer.PART}")
                        most.append(part.stat().st_size if part.exists() else 0)

    threading.Thread(target=lie, daemon=True).start()
    shelf = transfer.Shelf([transfer.Item(path, 5, digest)])
    took = transfer.Taker(shelf, [liar.getsockname()[:2]], "t")
    took.failed.set()  # another file failed: this one is not asked for again and again
    with liar, pytest.raises(transfer.TransferError, match="sent more data than the file size"):
        took.take()
    assert taker
    assert max(most, default=0) <= 5
