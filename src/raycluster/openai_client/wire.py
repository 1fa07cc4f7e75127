"""One HTTP/1.1 connection that posts a request and hands over its answer as it arrives.

httptools under asyncio, and nothing between: each layer of a general client costs CPU for every
event of a stream, and a load generator that is short of CPU measures itself.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from typing import Protocol

import httptools
import httpx

from raycluster.core.errors import UsageError
from raycluster.openai_client.target import Target
from raycluster.serve.asking.result import is_secret

CONNECT_SECONDS = 10.0
MOST_HEADER_BYTES = 1 << 20


class Sink(Protocol):
    """Takes an answer as it arrives. What its methods raise ends the exchange."""

    def begun(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the status and the headers, whose names are in lower case."""

    def data(self, chunk: bytes) -> None:
        """Take a piece of the body."""


class WireError(Exception):
    """No whole answer came."""


class ConnectError(WireError):
    """There is no connection."""


class EarlyEndError(WireError):
    """The connection ended before the answer did."""


class BadHttpError(WireError):
    """What came is not HTTP."""


class HttpWire:
    """Connects when it has to; sends one request after the other on one connection."""

    def __init__(self, target: Target, tls: ssl.SSLContext | None) -> None:
        base = httpx.URL(target.url(""))
        secure = base.scheme == "https"
        self._host = base.raw_host.decode()
        self._port = base.port or (443 if secure else 80)
        self._tls = tls if secure else None
        self._path = base.raw_path.rstrip(b"/")
        told = _headers(base, target)
        self.secrets = _secrets(told, base)
        headers = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        self._headers = f" HTTP/1.1\r\n{headers}content-length: ".encode()
        self._peer: _Peer | None = None

    async def post(self, path: str, content: bytes, sink: Sink, *, connect: float) -> None:
        """Send once, never again, and return at the answer's end.

        `connect` is in seconds. Raises WireError, and what the sink raises. Whatever is raised,
        a cancellation too, the connection is dropped.
        """
        peer = self._peer
        if peer is None or peer.ended:
            peer = self._peer = await self._connect(connect)
        head = b"POST " + self._path + path.encode() + self._headers
        try:
            await peer.ask(head + str(len(content)).encode() + b"\r\n\r\n" + content, sink)
        except BaseException:
            self.close()
            raise
        if not peer.reusable:
            self.close()

    def close(self) -> None:
        """Drop the connection; may be called twice."""
        if self._peer is not None:
            self._peer.abort()
            self._peer = None

    async def _connect(self, seconds: float) -> _Peer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                _, peer = await loop.create_connection(_Peer, self._host, self._port, ssl=self._tls)
        except TimeoutError as error:
            raise ConnectError(f"no connection after {seconds:g} s") from error
        except (OSError, UnicodeError) as error:  # a name may be none that DNS can hold
            raise ConnectError(f"{type(error).__name__}: {error}") from error
        return peer


class _Peer(asyncio.Protocol):
    """What the event loop and the parser call."""

    def __init__(self) -> None:
        self.ended = False
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._headers: dict[str, str] = {}
        self._begun = False
        self._before = 0

    async def ask(self, request: bytes, sink: Sink) -> None:
        self._sink = sink
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._begun = self.reusable = False
        self._before = 0
        assert self._transport is not None  # noqa: S101  # asyncio gave it before the protocol
        self._transport.write(request)
        await self._answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.ended = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP connection's is one

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()  # bytes that nobody asked for belong to no answer
            return
        if not self._begun:
            self._before += len(data)
            if self._before > MOST_HEADER_BYTES:
                self._end(BadHttpError("response headers too long"))
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._end(error.__context__ or error)
        except httptools.HttpParserError as error:
            self._end(BadHttpError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if exc is not None:
            self._end(EarlyEndError(f"{type(exc).__name__}: {exc}"))
        elif self._begun and not {"content-length", "transfer-encoding"} & self._headers.keys():
            self._end(None)  # such an answer ends with its connection
        else:
            what = "during the response" if self._begun else "without a response"
            self._end(EarlyEndError(f"the connection was closed {what}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:  # what comes behind the body says nothing
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._sink is not None:
            self._begun = True
            self._sink.begun(status, self._headers)

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.data(body)

    def on_message_complete(self) -> None:
        if not self._begun:
            self._headers = {}  # 100 Continue and its like; the answer is to come
            return
        self.reusable = self._parser.should_keep_alive()
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(error)


def _headers(base: httpx.URL, target: Target) -> dict[str, str]:
    """Return the headers of every request; a name and password in the address are Basic's."""
    headers = {
        "host": base.netloc.decode(),
        "content-type": "application/json",
        "accept-encoding": "identity",  # a gateway that compresses holds tokens back
        "user-agent": "raycluster",
    }
    if base.userinfo:
        pair = f"{base.username}:{base.password}"
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    headers |= {name.lower(): value for name, value in target.headers.items()}
    for name, value in headers.items():
        if any(ord(sign) < 32 for sign in value):
            raise UsageError("the value holds a control character", where=name, hint="--api-key")
    return headers


def _secrets(headers: Mapping[str, str], base: httpx.URL) -> tuple[str, ...]:
    """Return what a server is told and nobody else may be."""
    told = (headers.get("authorization", "").rpartition(" ")[2], base.password)
    return tuple(secret for secret in told if is_secret(secret))
