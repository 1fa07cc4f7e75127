"""An HTTP endpoint that answers as a real one would, but for answers that are spoiled.

A server of its own on loopback, for what `bench --url` and `batch --url` say to strangers: nonsense
in each layer (HTTP, coding, events, JSON), cut, slow, silent, endless, packed to grow, wrong kinds,
and the client's own key said back.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import socketserver
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Self

from tests.hostile import spoil
from tests.hostile.host import SILENT

AWAKE_S = 3.0
"""Seconds for which a silent or slow answer goes on, where nobody hangs up."""
Answer = Callable[[str, bytes, str], Iterator[bytes]]
"""Path, body and the key that was sent -> what is sent back, piece by piece."""
METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:generation_tokens_total{model_name="m"} 1234
process_start_time_seconds 1.796e+09
"""


class Endpoint:
    """A context manager: inside it, `url` leads to what `answer` says, which may be set anew."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._over = threading.Event()

    def __enter__(self) -> Self:
        endpoint = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    _talk(self.request, endpoint.answer)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _talk(connection: socket.socket, answer: Answer) -> None:
    connection.settimeout(AWAKE_S)
    kept = b""
    while True:
        while b"\r\n\r\n" not in kept:
            data = connection.recv(65536)
            if not data:
                return
            kept += data
        head, _, kept = kept.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:])}
        size = int(headers.get("content-length", 0))
        while len(kept) < size:
            data = connection.recv(65536)
            if not data:
                return
            kept += data
        body, kept = kept[:size], kept[size:]
        key = headers.get("authorization", "").removeprefix("Bearer ")
        for piece in answer(lines[0].split(" ")[1], body, key):
            if piece is RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if piece is SLOWLY:
                if _hung_up(connection, 0.02):
                    return
                continue
            if piece is SILENCE:
                _hung_up(connection, AWAKE_S)
                return
            connection.sendall(piece)


def _hung_up(connection: socket.socket, seconds: float) -> bool:
    """Wait for the other side to leave."""
    connection.settimeout(seconds)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.settimeout(AWAKE_S)


RESET, SLOWLY, SILENCE = b"<reset>", b"<slowly>", b"<silence>"


def well(path: str, body: bytes, _key: str) -> Iterator[bytes]:
    """Answer as vLLM does."""
    if path.endswith("/metrics"):
        yield whole(METRICS.encode(), "text/plain; version=0.0.4")
    elif json.loads(body or b"{}").get("stream"):
        yield chunked("text/event-stream", events())
    else:
        yield whole(json.dumps(ANSWER).encode())


ANSWER: dict[str, object] = {
    **{"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m"},
    "choices": [
        {
            **{"index": 0, "finish_reason": "stop", "logprobs": None},
            "message": {"role": "assistant", "content": "Paris."},
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}


def events() -> list[bytes]:
    """Return the events of a streamed answer."""
    same = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    said: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "Paris"}}]},
        {"choices": [{"index": 0, "delta": {"content": "."}, "finish_reason": "stop"}]},
        {"choices": [], "usage": ANSWER["usage"]},
    ]
    lines = [json.dumps({**same, **each}).encode() for each in said]
    return [b"data: " + line + b"\n\n" for line in (*lines, b"[DONE]")]


def whole(
    body: bytes, kind: str = "application/json", status: str = "200 OK", more: str = ""
) -> bytes:
    """Return an answer with its length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("utf-8", "surrogatepass") + body


def chunked(kind: str, pieces: list[bytes], more: str = "", end: bytes = b"0\r\n\r\n") -> bytes:
    """Return an answer in chunks."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + end


def hostile(seed: int, honest: Answer = well) -> Answer:
    """Return what spoils one of the first answers of an honest endpoint, some or all."""
    chance, lock = random.Random(seed), threading.Lock()
    kind = chance.random()
    first = chance.randrange(6) if kind < 0.4 else -1
    share = 0.0 if kind < 0.4 else 0.3 if kind < 0.8 else 1.0
    count = [0]

    def answer(path: str, body: bytes, key: str) -> Iterator[bytes]:
        with lock:
            count[0] += 1
            chosen = count[0] - 1 == first or chance.random() < share
            mine = random.Random(chance.getrandbits(64))
        said = honest(path, body, key)
        return WAYS[mine.randrange(len(WAYS))](mine, b"".join(said), key) if chosen else said

    return answer


Way = Callable[[random.Random, bytes, str], Iterator[bytes]]


def _http(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    answer = spoil.spoiled(chance, said)
    yield answer.removesuffix(SILENT)
    yield SILENCE if answer.endswith(SILENT) else chance.choice((RESET, SILENCE))


def _body(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    """Spoil an event, or the whole body, and say it as HTTP should."""
    head, _, _ = said.partition(b"\r\n\r\n")
    if b"event-stream" in head:
        parts = events()
        place = chance.randrange(len(parts))
        content = parts[place][6:-2]
        data = spoil.spoiled(chance, content)
        parts[place] = chance.choice((b"data: ", b"data:", b"", b"event: error\ndata: ")) + data
        parts[place] += chance.choice((b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b""))
        yield chunked("text/event-stream", parts)
    else:
        yield whole(spoil.spoiled(chance, said.partition(b"\r\n\r\n")[2]))


def _cut(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    yield said[: chance.randrange(len(said))]
    yield chance.choice((RESET, SILENCE))


def _slow(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    for place in range(chance.randrange(len(said)), len(said)):
        yield said[place : place + 1]
        yield SLOWLY


def _endless(chance: random.Random, _said: bytes, _key: str) -> Iterator[bytes]:
    """Say the same again and again, for as long as somebody reads."""
    piece = chance.choice(
        (*events()[1:4], b"data: x", b": ping\n\n", b"\n\n", b"event: a\n", b'{"a":', b"x", b"\0")
    )
    kind = chance.choice(("text/event-stream", "application/json", "text/html"))
    status = chance.choice(("200 OK", "500 Oh", "429 Slow"))
    chunk = b"%x\r\n%s\r\n" % (len(piece) * 500, piece * 500)
    yield f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n".encode()
    if chance.random() < 0.5:
        yield b"Transfer-Encoding: chunked\r\n\r\n"
    else:
        yield b"\r\n"
        chunk = piece * 500
    for _ in range(4000):
        yield chunk


def _flood(chance: random.Random, _said: bytes, _key: str) -> Iterator[bytes]:
    """Never come to the body."""
    start, again = chance.choice(
        (
            (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000),
            (b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 8000),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 300),
            (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 300),
            (b"HTTP/1.1 200 " + b"O" * 9000, b"K" * 9000),
            (b"", b"\r\n" * 4000),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a=b;" * 2000),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n" * 1000),
        )
    )
    yield start
    for _ in range(2000):
        yield again


@cache
def _bomb(coding: str) -> bytes:
    plain = b"data: " + bytes(80 << 20)
    return gzip.compress(plain, 1) if coding == "gzip" else zlib.compress(plain, 1)


def _packed(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    coding = chance.choice(("gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 5000, "\u0660"))
    kind = chance.choice(("text/event-stream", "application/json"))
    more = f"Content-Encoding: {coding}\r\n"
    body = said.partition(b"\r\n\r\n")[2]
    data = _bomb(coding) if chance.random() < 0.3 else gzip.compress(body)
    yield whole(data[: chance.choice((len(data), len(data) // 2))], kind, more=more)


def _kinds(chance: random.Random, said: bytes, _key: str) -> Iterator[bytes]:
    kind = chance.choice(
        (
            "",
            "text/html",
            "text/event-stream",
            "application/json; charset=hex",
            "\x1b[2J",
            "a" * 9000,
        )
    )
    yield whole(said.partition(b"\r\n\r\n")[2], kind)


def _elsewhere(chance: random.Random, _said: bytes, _key: str) -> Iterator[bytes]:
    place = chance.choice(
        (
            "file:///etc/passwd",
            "http://127.0.0.1:1/",
            "//evil",
            "\x1b[2J",
            "http://[::1",
            "/v1" * 3000,
        )
    )
    status = chance.choice((301, 302, 303, 307, 308, 300, 399))
    yield whole(b"", "text/html", f"{status} Gone", f"Location: {place}\r\n")


def _refusal(chance: random.Random, _said: bytes, _key: str) -> Iterator[bytes]:
    status = chance.choice(
        (100, 101, 204, 205, 304, 400, 401, 403, 404, 408, 413, 429, 500, 503, 999)
    )
    wait = chance.choice(
        (
            *("0", "1", "1e999", "-1", "9" * 400, "\u00b2", "NaN", "0x10", "", "inf"),
            *("Fri, 31 Dec 9999 23:59:59 -9999", "Mon, 01 Jan 0001 00:00:00 +2359"),
            *("Thu, 01 Jan 1970 00:00:00 +99999999999", "Thu, 99 Jan 1970 99:99:99 GMT", "Thu"),
        )
    )
    code: object = chance.choice(
        (500, "4" * 5000, "429", None, [], 10**30, -1, "\u0665\u0660\u0660")
    )
    text: object = chance.choice((*spoil.TEXTS, *spoil.VALUES))
    said: object = chance.choice(
        ({"error": {"message": text, "code": code}}, {"error": text}, {"detail": text}, text)
    )
    if chance.random() < 0.1:
        for _ in range(900):
            said = {"error": said}
    body = json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if chance.random() < 0.3:
        status = 200
    yield whole(body, status=f"{status} No", more=f"Retry-After: {wait}\r\n")


def _echo(chance: random.Random, _said: bytes, key: str) -> Iterator[bytes]:
    """Say the key back, where a client might show it."""
    error = json.dumps({"error": {"message": f"Incorrect API key provided: {key}", "code": 401}})
    reason = [{"delta": {"content": key}, "text": key, "finish_reason": key}]
    event = b"data: " + json.dumps({"choices": reason}).encode() + b"\n\n"
    yield chance.choice(
        (
            whole(error.encode(), status=f"{chance.choice((400, 401, 429, 500))} {key}"),
            whole(error.encode()),
            whole(key.encode(), key),
            whole(b"{}", more=f"Content-Encoding: {key}\r\n"),
            whole(json.dumps(ANSWER).encode(), more=f"X-Request-Id: {key}\r\n"),
            chunked("text/event-stream", [event, *events()[1:]]),
            chunked("text/event-stream", [b"data: " + key.encode() + b"\n\n"]),
            chunked("text/event-stream", [b"event: error\ndata: " + error.encode() + b"\n\n"]),
            f"HTTP/1.1 {key} OK\r\n\r\n".encode(),
            f"{key}\r\n\r\n".encode(),
            f"HTTP/1.1 200 OK\r\n{key} : x\r\n\r\n".encode(),
            f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {key}\r\n\r\n".encode(),
            f"HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n".encode(),
            f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n".encode(),
            whole(f'vllm:num_requests_running{{model_name="{key}"}} {key}\n'.encode()),
            whole(f'raycluster_engine_info{{engine="{key}",reason="{key}"}} 1\n'.encode()),
        )
    )
    yield RESET


WAYS: tuple[Way, ...] = (
    *(_http, _http, _body, _body, _body, _body, _cut, _cut, _slow, _endless, _flood, _packed),
    *(_kinds, _elsewhere, _refusal, _refusal, _refusal, _echo, _echo),
)
