"""Files from host to host: each address of 127.0.0.0/8 stands for a host; the sockets are real."""

from __future__ import annotations

import ast
import hashlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycluster.serve import transfer
from raycluster.serve.transfer import (
    PART,
    Item,
    Shelf,
    Taker,
    TransferError,
    digest_of,
    proof,
    serve,
)

TOKEN = "t" * 64
CONTENT = random.Random(5).randbytes(3_500_000)
OF_ANOTHER = transfer.proof(TOKEN, ("127.0.0.2", 6386), "/0", "bytes=0-")
SMALL = b'{"model_type": "qwen2"}'


@dataclass
class Place:
    """A host's folder and what it serves of it."""

    shelf: Shelf
    folder: Path

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def items_in(folder: Path) -> list[Item]:
    git = hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL, usedforsecurity=False).hexdigest()
    return [
        Item(folder / "model", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
        Item(folder / "config", len(SMALL), git),
        Item(folder / "empty", 0, hashlib.sha256().hexdigest()),
    ]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def host(tmp_path: Path, number: int, port: int, *, holds: bool = False) -> Iterator[Place]:
    folder = tmp_path / str(number)
    folder.mkdir()
    shelf = Shelf(items_in(folder))
    if holds:
        for item, content in zip(shelf.items, (CONTENT, SMALL, b""), strict=True):
            item.path.write_bytes(content)
        for index, item in enumerate(shelf.items):
            shelf.set(index, item.size)
    server = serve(shelf, TOKEN, f"127.0.0.{number}", port)
    try:
        yield Place(shelf, folder)
    finally:
        server.shutdown()
        server.server_close()


def take(place: Place, port: int, *numbers: int) -> None:
    Taker(place.shelf, [(f"127.0.0.{n}", port) for n in numbers], TOKEN).take()


def test_each_serves_the_next_while_it_takes(tmp_path: Path, port: int) -> None:
    with (
        host(tmp_path, 1, port, holds=True),
        host(tmp_path, 2, port) as second,
        host(tmp_path, 3, port) as third,
    ):
        last = threading.Thread(target=take, args=(third, port, 2))  # it never asks the first
        last.start()
        take(second, port, 1)
        last.join(30)
    for place in (second, third):
        assert place.read("model") == CONTENT
        assert place.read("config") == SMALL
        assert place.read("empty") == b""
        assert not list(place.folder.glob(f"*{PART}"))


@pytest.mark.parametrize("given", ["", "HMAC wrong", f"Bearer {TOKEN}", OF_ANOTHER])
def test_who_has_no_token_gets_nothing(tmp_path: Path, port: int, given: str) -> None:
    with host(tmp_path, 1, port, holds=True):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/0", headers={"Authorization": given} if given else {})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (401, b"")


def test_who_holds_the_port_of_a_host_learns_nothing_that_another_takes(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "EARLY_S", 0.0)
    heard: list[bytes] = []

    def listen() -> None:
        taken, _ = server.accept()
        server.close()
        with taken:
            heard.append(taken.recv(10_000))

    with (
        socket.create_server(("127.0.0.2", port)) as server,
        host(tmp_path, 1, port, holds=True),
        host(tmp_path, 3, port) as third,
    ):
        thread = threading.Thread(target=listen)
        thread.start()
        take(third, port, 2, 1)
        thread.join(30)
        assert heard[0].startswith(b"GET /")
        assert TOKEN.encode() not in heard[0]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as again:
            again.sendall(heard[0])
            assert again.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/3", "/-1", "/../config", "/", "//etc/passwd"])
def test_nothing_but_the_items_is_served(tmp_path: Path, port: int, path: str) -> None:
    with host(tmp_path, 1, port, holds=True):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        given = proof(TOKEN, ("127.0.0.1", port), path.replace("//", "/"), "bytes=0-")
        connection.request("GET", path, headers={"Authorization": given})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"")


def test_it_listens_on_the_given_address_alone(tmp_path: Path, port: int) -> None:
    with host(tmp_path, 2, port, holds=True), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", port), timeout=5)


def test_a_broken_transfer_goes_on_where_it_ended(tmp_path: Path, port: int) -> None:
    done = 2_000_000
    with host(tmp_path, 1, port, holds=True) as first, host(tmp_path, 2, port) as second:
        (second.folder / f"model{PART}").write_bytes(CONTENT[:done])
        (first.folder / "model").write_bytes(bytes(done) + CONTENT[done:])  # so it is not sent
        take(second, port, 1)
    assert second.read("model") == CONTENT


def test_what_comes_wrong_is_taken_again_from_who_had_it_first(tmp_path: Path, port: int) -> None:
    with (
        host(tmp_path, 1, port, holds=True),
        host(tmp_path, 2, port, holds=True) as damaged,
        host(tmp_path, 3, port) as third,
    ):
        (damaged.folder / "model").write_bytes(CONTENT[:-1] + b"x")
        take(third, port, 2, 1)
    assert third.read("model") == CONTENT


def test_what_is_wrong_everywhere_is_an_error_and_leaves_nothing(tmp_path: Path, port: int) -> None:
    with host(tmp_path, 1, port, holds=True) as first, host(tmp_path, 2, port) as second:
        (first.folder / "model").write_bytes(CONTENT[:-1] + b"x")
        with pytest.raises(TransferError, match="model was received with a wrong SHA-256, twice"):
            take(second, port, 1)
    assert not list(second.folder.glob("model*"))


def test_a_peer_that_is_gone_is_passed_over(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "EARLY_S", 0.2)
    with host(tmp_path, 1, port, holds=True), host(tmp_path, 2, port) as second:
        take(second, port, 9, 1)
    assert second.read("model") == CONTENT


def test_where_nobody_serves_the_error_says_whom_it_asked(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "EARLY_S", 0.1)
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.4)
    with (
        host(tmp_path, 2, port) as second,
        pytest.raises(TransferError, match=rf"no host provides .*127\.0\.0\.9:{port}.*refused"),
    ):
        take(second, port, 9)


def test_many_files_fail_as_fast_as_one(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.3)
    shelf = Shelf([Item(tmp_path / str(n), 1, "0" * 64) for n in range(200)])
    begun = time.monotonic()
    with pytest.raises(TransferError, match="no host provides"):
        Taker(shelf, [("127.0.0.9", port)], TOKEN).take()
    assert time.monotonic() - begun < 15  # seconds; one after the other would take 60


def test_room_is_asked_for_before_anything_comes(tmp_path: Path, port: int) -> None:
    huge = Shelf([Item(tmp_path / "huge", 1 << 60, "0" * 64)])
    with pytest.raises(TransferError, match=r"GB are needed in .* are free"):
        Taker(huge, [("127.0.0.9", port)], TOKEN).take()
    assert not list(tmp_path.iterdir())


def test_digests_are_those_that_the_hub_tells() -> None:
    assert digest_of("a" * 64, 3).name == "sha256"
    git = digest_of("a" * 40, 6)
    git.update(b"hello\n")
    assert git.hexdigest() == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_it_can_be_read_by_an_old_python() -> None:
    assert ast.parse(Path(transfer.__file__).read_text(), feature_version=(3, 8)).body
