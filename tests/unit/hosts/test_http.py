"""Answers over a transport's stream are bounded as a whole, and read as they came."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from raycluster.core.interfaces import Address, ByteStream
from raycluster.hosts import http
from raycluster.hosts.http import asking_client, http_client, whole_answer
from raycluster.hosts.transports.local import LocalTransport


class Answering(LocalTransport):
    """A host at whose ports these pieces come, whatever is asked."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__("here")
        self.pieces = pieces
        self.asked = b""

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        return Stream(self)


class Stream:
    def __init__(self, host: Answering) -> None:
        self.host, self.rest = host, b""

    def sendall(self, data: bytes, /) -> None:
        self.host.asked += data

    def recv(self, size: int, /) -> bytes:
        self.rest = self.rest or next(self.host.pieces, b"")
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def settimeout(self, seconds: float | None, /) -> None:
        pass

    def shutdown(self, how: int, /) -> None:
        pass

    def close(self) -> None:
        pass


def said(*headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *headers, "", "")).encode() + body


def test_an_endless_answer_is_given_up() -> None:
    def endless() -> Iterator[bytes]:
        yield said("Content-Length: 999999999999")
        while True:
            yield bytes(1 << 20)

    with (
        http_client(Answering(endless()), 1) as client,
        pytest.raises(httpx.HTTPError, match="the response is larger than 32 MiB"),
    ):
        client.get("/")


@pytest.mark.parametrize("headers", [False, True])
def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, headers: bool) -> None:
    monkeypatch.setattr(http, "LEAST_S", 0.0)

    def dripping() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" if headers else said("Content-Length: 999999")
        while True:
            time.sleep(0.01)
            yield b"x: y\r\n" if headers else b"x"

    with (
        http_client(Answering(dripping()), 1, timeout=0.1) as client,
        pytest.raises(httpx.HTTPError, match=r"the response takes too long|too many|too big"),
    ):
        client.get("/")


def test_what_is_packed_stays_packed() -> None:
    packed = gzip.compress(bytes(200 << 20), 1)
    host = Answering(
        iter([said("Content-Encoding: gzip", f"Content-Length: {len(packed)}"), packed])
    )
    with http_client(host, 1) as client:
        assert client.get("/").content == packed
    assert b"Accept-Encoding: identity\r\n" in host.asked


@pytest.mark.parametrize(
    "charset", ["hex", "idna", "undefined", "base64", "utf-16", "x" * 500, "\xff"]
)
def test_text_is_utf_8_whatever_it_calls_itself(charset: str) -> None:
    head = said(
        f"Content-Type: text/plain; charset={charset}", "Content-Length: 3", body=b"a\xff\xc3"
    )
    with http_client(Answering(iter([head])), 1) as client:
        assert client.get("/").text == "a\ufffd\ufffd"


def test_a_token_goes_out_and_the_limits_end_with_the_request() -> None:
    asked: list[bytes] = []

    def ask(request: bytes, seconds: float) -> bytes:
        assert seconds <= 30
        asked.append(request)
        return said("Content-Length: 2", body=b"{}")

    with asking_client(ask, 1, token="t") as client:
        assert client.get("/").json() == {}
    assert b"Authorization: Bearer t\r\n" in asked[0]
    assert http._limits.end is None


def test_a_stranger_whose_head_drips_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, httpx.Client(timeout=5.0) as client:
        over = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(httpx.ReadTimeout):
                whole_answer(client, f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=0.5)
        finally:
            over.set()
            thread.join()
