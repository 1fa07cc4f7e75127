"""The connection, against servers that answer in every way that HTTP allows, and some others."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable

import pytest

from raycluster.core.errors import UsageError
from raycluster.openai_client.target import Target, check_address
from raycluster.serve.asking.result import Reply, UnansweredError
from raycluster.serve.asking.sender import RequestSender, Room

OK = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Writes `answer` to each request and, when told so, closes."""

    def __init__(self, answer: bytes, *, close: bool = False) -> None:
        self.answer = answer
        self.close = close
        self.heads: list[str] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
                await reader.readexactly(int(length))
                writer.write(self.answer)
                await writer.drain()
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def posts(
    server: Server,
    count: int = 1,
    *,
    timeout: float = 10.0,
    base: str = "http://127.0.0.1:{port}",
    key: str = "",
) -> list[Reply | UnansweredError]:
    async def run() -> list[Reply | UnansweredError]:
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        headers = {"x-key": "k"} | ({"authorization": f"Bearer {key}"} if key else {})
        sender = RequestSender(Target(base.format(port=port), "").url(""), timeout, headers)
        outcomes: list[Reply | UnansweredError] = []
        for _ in range(count):
            try:
                outcomes.append(await sender.post("/v1/embeddings", b'{"input": "a"}'))
            except UnansweredError as error:
                outcomes.append(error)
        sender.close()
        listening.close()
        await listening.wait_closed()
        return outcomes

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "close", "connections"),
    [
        (OK + b"content-length: 2\r\n\r\n{}", False, 1),
        (OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", False, 1),
        (OK + b"content-length: 2\r\nconnection: close\r\n\r\n{}", True, 3),
        (OK + b"\r\n{}", True, 3),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", True, 3),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\n{}", False, 1),
    ],
)
def test_reads_an_answer_of_any_framing_and_uses_the_connection_again(
    answer: bytes, close: bool, connections: int
) -> None:
    server = Server(answer, close=close)
    for reply in posts(server, 3):
        assert isinstance(reply, Reply)
        assert (reply.status, reply.body) == (200, b"{}")
    assert server.connections == connections


@pytest.mark.parametrize(
    ("answer", "code", "reached"),
    [
        (b"", "connection", False),
        (b"HTTP/1.1 200", "connection", False),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "connection", False),
        (OK + b"content-length: 9\r\n\r\n{}", "truncated", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n9\r\n{}", "truncated", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", "truncated", True),
    ],
)
def test_an_answer_that_is_not_whole_is_none(answer: bytes, code: str, reached: bool) -> None:
    server = Server(answer, close=True)
    for outcome in posts(server, 2):
        assert isinstance(outcome, UnansweredError)
        assert (outcome.code, outcome.reached) == (code, reached)
    assert server.connections == 2


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate", "identity", ""])
def test_a_body_that_is_packed_in_spite_of_all_is_unpacked(coding: str) -> None:
    body = b'{"a": "' + b"x" * 100_000 + b'"}'
    packed = body if coding in {"identity", ""} else gzip.compress(body)
    packed = zlib.compress(body) if coding == "deflate" else packed
    head = f"content-encoding: {coding}\r\ncontent-length: {len(packed)}\r\n\r\n"
    server = Server(OK + head.encode() + packed)
    for reply in posts(server, 2):
        assert isinstance(reply, Reply) and reply.body == body
    assert server.connections == 1


@pytest.mark.parametrize(
    ("coding", "packed", "what"),
    [
        ("br", b"\x0b\x02\x80{}\x03", "packed by br, which nobody asked for"),
        ("gzip", b"{}", "is damaged"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-9], "ends too early"),
        ("gzip", gzip.compress(bytes(80 << 20), 9, mtime=0), "is too large"),
    ],
)
def test_a_packed_body_that_cannot_be_read_is_said(coding: str, packed: bytes, what: str) -> None:
    head = f"content-encoding: {coding}\r\ncontent-length: {len(packed)}\r\n\r\n"
    (outcome,) = posts(Server(OK + head.encode() + packed))
    assert isinstance(outcome, UnansweredError)
    assert (outcome.code, outcome.reached) == ("protocol", True) and what in outcome.detail


def test_an_answer_that_hangs_times_out() -> None:
    (outcome,) = posts(Server(OK + b"content-length: 9\r\n\r\n{"), timeout=1)
    assert isinstance(outcome, UnansweredError)
    assert outcome.code == "timeout"


def test_the_address_may_hold_a_path_a_version_and_a_password() -> None:
    server = Server(OK + b"content-length: 2\r\n\r\n{}")
    posts(server, base="http://me:p%40ss@127.0.0.1:{port}/gate/v1")
    (head,) = server.heads
    assert head.startswith("POST /gate/v1/embeddings HTTP/1.1\r\n")
    lines = {line.lower() for line in head.split("\r\n")}
    assert {"authorization: basic bwu6cebzcw==", "x-key: k", "accept-encoding: identity"} <= lines
    assert "@" not in head


@pytest.mark.parametrize("url", ["http://", "http://:80", "http://h:99999", "http://h:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_address(Target(url, ""))


def test_answers_under_way_share_what_they_may_hold() -> None:
    """Three connections, room for two answers; what is done holds nothing any more."""
    body = b'{"a": "' + b"x" * 60_000 + b'"}'
    answer = OK + b"content-length: %d\r\n\r\n" % len(body) + body
    room = Room(140_000)
    waits, goes_on = asyncio.Event(), asyncio.Event()
    open_now: list[int] = []

    async def halves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(answer[:-9])
        await writer.drain()
        open_now.append(1)
        if len(open_now) == 2:
            waits.set()
        await goes_on.wait()
        writer.write(answer[-9:])
        writer.close()

    async def run() -> None:
        listening = await asyncio.start_server(halves, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        senders = [RequestSender(base, 20.0, room=room) for _ in range(3)]
        first = [asyncio.create_task(s.post("/", b"{}")) for s in senders[:2]]
        await asyncio.wait_for(waits.wait(), 20)
        with pytest.raises(UnansweredError, match="together"):
            while True:  # the first two may still be on their way to us
                await asyncio.wait_for(senders[2].post("/", b"{}"), 20)
        goes_on.set()
        assert [reply.body for reply in await asyncio.gather(*first)] == [body, body]
        assert (await senders[2].post("/", b"{}")).body == body
        for sender in senders:
            sender.close()
        listening.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 No\r\ncontent-length: 11\r\n\r\nsk-secret-1",
        b"HTTP/1.1 200 sk-secret-1\r\nx-a: sk-secret-1\r\ncontent-length: 11\r\n\r\nsk-secret-1",
        b"HTTP/1.1 sk-secret-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: sk-secret-1\r\n\r\n",
        OK + b"content-encoding: sk-secret-1\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
@pytest.mark.parametrize(
    "base", ["http://127.0.0.1:{port}", "http://me:sk-secret-1@127.0.0.1:{port}"]
)
def test_a_key_that_is_said_back_is_hidden(answer: bytes, base: str) -> None:
    for told in posts(Server(answer, close=True), base=base, key="sk-secret-1"):
        shown = repr(
            told.detail if isinstance(told, UnansweredError) else (told.body, told.headers)
        )
        assert "secret" not in shown, shown
