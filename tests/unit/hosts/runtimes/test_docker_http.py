"""The Docker SDK over our streams, against a small daemon of the test's own."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker.errors
import pytest
import requests

from raycluster.core.errors import AnswerError, ConnectionLostError
from raycluster.core.interfaces import ByteStream
from raycluster.hosts.runtimes.docker_http import PIECE, Hijacked, newest_info, open_client

Answer = Callable[[str], bytes]


def answer(status: str, body: object, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


class Daemon:
    """Answers every request by `answers`, from its path, and notes the paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []
        self.answers: Answer = lambda path: answer("200 OK", [])
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def open(self) -> ByteStream:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(self.path))
        return stream

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream, stream.makefile("rb") as reader:
            while request := reader.readline():
                headers = dict(iter(lambda: reader.readline().lower().split(b":")[:2], [b"\r\n"]))
                reader.read(int(headers.get(b"content-length", 0)))
                path = request.split()[1].decode()
                self.asked.append(path)
                stream.sendall(self.answers(path))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "d.sock")
    yield made
    made.close()


def test_an_older_daemon_costs_one_more_request_once(daemon: Daemon) -> None:
    def refuse_newer(path: str) -> bytes:
        if path.startswith("/v1.41/"):
            return answer("200 OK", [], "Api-Version: 1.41")
        said = {"message": "client version 1.45 is too new. Maximum supported API version is 1.41"}
        return answer("400 Bad Request", said, "Api-Version: 1.41")

    daemon.answers = refuse_newer
    client = open_client(daemon.open)
    assert client.containers(all=True) == []
    assert client.containers(all=True) == []
    assert [path.partition("?")[0].split("/")[1] for path in daemon.asked][1:] == ["v1.41"] * 2
    assert daemon.asked[1].partition("?")[2] == daemon.asked[0].partition("?")[2]
    client.close()


def test_a_refusal_for_another_reason_is_not_repeated(daemon: Daemon) -> None:
    daemon.answers = lambda _: answer("400 Bad Request", {"message": "no"}, "Api-Version: 1.41")
    client = open_client(daemon.open)
    with pytest.raises(docker.errors.APIError, match="no"):
        client.containers()
    assert len(daemon.asked) == 1
    client.close()


def test_connections_are_used_again(daemon: Daemon) -> None:
    client = open_client(daemon.open)
    for _ in range(3):
        client.containers()
    assert daemon.connections == 1
    client.close()


def test_errors_of_the_transport_pass_through(daemon: Daemon) -> None:
    def broken() -> ByteStream:
        raise ConnectionLostError("gone", where="gpu-1")

    with pytest.raises(ConnectionLostError):
        open_client(broken).containers()


def test_an_upgraded_stream_keeps_the_bytes_that_came_with_the_answer(daemon: Daemon) -> None:
    early = b"\x01\0\0\0\0\0\0\x05early"

    def upgrade(path: str) -> bytes:
        if path.endswith("/start"):
            return b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + early
        return answer("200 OK", {"Id": "x"})

    daemon.answers = upgrade
    client = open_client(daemon.open)
    client.containers()  # so that the upgrade happens on a connection that was made before
    stream = client.exec_start("x", socket=True)
    assert isinstance(stream, Hijacked)
    assert stream.read(len(early)) == early
    stream.sock.close()
    stream.close()
    client.close()


@pytest.mark.parametrize(
    ("offered", "asked", "devices"),
    [
        ("1.51", ["/v1.45/info", "/v1.45/version", "/v1.51/info"], True),
        ("1.45", ["/v1.45/info", "/v1.45/version"], False),
        ("1.41", ["/v1.45/info", "/v1.45/version"], False),
        ("odd", ["/v1.45/info", "/v1.45/version"], False),
    ],
)
def test_a_daemon_is_asked_about_itself_in_its_newest_version(
    daemon: Daemon, offered: str, asked: list[str], *, devices: bool
) -> None:
    def told(path: str) -> bytes:
        if path.endswith("/version"):
            return answer("200 OK", {"ApiVersion": offered})
        newest = path == "/v1.51/info"
        return answer("200 OK", {"DiscoveredDevices": [{"ID": "x"}]} if newest else {})

    daemon.answers = told
    info = newest_info(open_client(daemon.open))
    assert daemon.asked == asked
    assert bool(info.get("DiscoveredDevices")) is devices


def test_a_daemon_that_refuses_its_own_version_is_taken_as_it_is(daemon: Daemon) -> None:
    def told(path: str) -> bytes:
        if path.startswith("/v1.99/"):
            return answer("500 Internal Server Error", {"message": "no"})
        return answer("200 OK", {"ApiVersion": "1.99", "Name": "host"})

    daemon.answers = told
    assert newest_info(open_client(daemon.open))["Name"] == "host"


def test_an_endless_answer_is_given_up(daemon: Daemon) -> None:
    daemon.answers = lambda _: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(40 << 20)
    )
    with pytest.raises(AnswerError, match="the Docker daemon sent more than 32 MiB"):
        open_client(daemon.open).containers()


def test_packed_answers_are_not_unpacked(daemon: Daemon) -> None:
    packed = gzip.compress(b"[" + b" " * (100 << 20) + b"]", 1)
    head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n"
    daemon.answers = lambda _: head.format(len(packed)).encode() + packed
    with pytest.raises(requests.exceptions.JSONDecodeError):
        open_client(daemon.open).containers()


def test_a_frame_that_says_four_gigabytes_comes_in_pieces(daemon: Daemon) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    frame = struct.pack(">BxxxL", 1, 0xFFFFFFFF) + bytes(100_000)
    inspected = answer("200 OK", {"Config": {"Tty": False}})
    daemon.answers = lambda path: head + frame if "logs" in path else inspected
    client = open_client(daemon.open)
    pieces = client.logs("c", stream=True, follow=False)
    assert len(next(pieces)) == PIECE
    pieces.close()


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{cut", b'"a"', b"7", b"\xff"])
def test_an_event_of_another_kind_is_an_error_of_ours(daemon: Daemon, line: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\n\r\n0\r\n\r\n" % (len(line) + 1, line)
    daemon.answers = lambda _: head + chunk
    with pytest.raises(AnswerError, match="cannot be parsed"):
        list(open_client(daemon.open).pull("i", "t", stream=True, decode=True))


def test_headers_that_drip_are_given_up() -> None:
    class Dripping:
        def recv(self, _size: int) -> bytes:
            time.sleep(0.01)
            return b"X"

        def settimeout(self, _seconds: float | None) -> None:
            pass

        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_: None

    client = open_client(Dripping, timeout=1)
    client.timeout = 0.05  # type: ignore[assignment]
    with pytest.raises((requests.exceptions.RequestException, TimeoutError)):
        client.containers()
