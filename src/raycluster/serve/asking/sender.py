"""One connection that posts a request and reads its whole answer.

h11 over asyncio's streams: an HTTP client's pool costs five times the CPU per request here, and a
batch is limited by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, unquote, urlsplit

import h11

from raycluster.serve.asking.result import (
    CodingError,
    Reply,
    UnansweredError,
    Unpacker,
    hidden,
    is_secret,
)

MOST_TOGETHER = 1024 * 1024 * 1024


class RoomError(Exception):
    """An answer would take more memory than is left to all of them."""


class Room:
    """Bytes that answers hold until they are done; lives in one thread."""

    def __init__(self, most: int = MOST_TOGETHER) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Hold more. Raises RoomError, and holds it all the same: `give` it back."""
        self._taken += size
        if self._taken > self._most:
            raise RoomError(
                f"the answers under way are larger than {self._most >> 20} MiB together"
            )

    def give(self, size: int) -> None:
        """Hold less."""
        self._taken -= size


SHARED = Room()
"""Of this process."""


_CONNECT_SECONDS = 10.0
_READ_BYTES = 65536
_MAX_BODY_BYTES = 256 * 1024 * 1024


class RequestSender:
    """Sends one request after the other; connects when it has to.

    `base` is the address without the API's path, and may hold user and password; `timeout` in
    seconds is for one request.
    """

    def __init__(
        self,
        base: str,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        room: Room = SHARED,
    ) -> None:
        self._timeout = timeout
        self._room = room
        self._tls = tls
        self._base = urlsplit(base)
        self._headers = _headers(self._base, headers or {})
        self._secrets = _secrets(self._headers, self._base)
        self._wire: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, path: str, content: bytes) -> Reply:
        """Send once, never again; raises UnansweredError. A key that is said back is hidden."""
        reply = _Reply(self._room)
        try:
            return await self._post(path, content, reply)
        except UnansweredError as error:
            raise UnansweredError(
                error.code, hidden(error.detail, self._secrets), reached=error.reached
            ) from error
        finally:
            reply.forget()

    async def _post(self, path: str, content: bytes, reply: _Reply) -> Reply:
        if self._wire is not None and self._wire[0].at_eof():
            self.close()  # the server ended it while it was idle
        try:
            async with asyncio.timeout(self._timeout):
                wire = self._wire or await self._connect()
                await self._exchange(wire, path, content, reply)
        except TimeoutError as error:
            self.close()
            text = f"no complete response after {self._timeout:g} s"
            raise UnansweredError("timeout", text, reached=True) from error
        except (CodingError, RoomError) as error:
            self.close()
            raise UnansweredError("protocol", str(error), reached=True) from error
        except (OSError, EOFError, h11.ProtocolError) as error:
            self.close()
            code = "truncated" if reply.begun else "connection"
            detail = f"{type(error).__name__}: {error}"
            raise UnansweredError(code, detail, reached=reply.begun) from error
        except BaseException:
            self.close()
            raise
        self._again()
        return reply.whole(self._secrets)

    def close(self) -> None:
        """Drop the connection; may be called twice."""
        if self._wire is not None:
            self._wire[1].transport.abort()
            self._wire = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = self._base.scheme == "https"
        port = self._base.port or (443 if secure else 80)
        try:
            async with asyncio.timeout(min(_CONNECT_SECONDS, self._timeout)):
                wire = await asyncio.open_connection(
                    self._base.hostname, port, ssl=self._tls if secure else None
                )
        except TimeoutError as error:
            raise ConnectionError(f"no connection after {_CONNECT_SECONDS:g} s") from error
        self._http = h11.Connection(h11.CLIENT)
        self._wire = wire
        return wire

    async def _exchange(
        self,
        wire: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        path: str,
        content: bytes,
        reply: _Reply,
    ) -> None:
        reader, writer = wire
        headers = [*self._headers, ("content-length", str(len(content)))]
        request = h11.Request(method="POST", target=self._base.path + path, headers=headers)
        http = self._http
        head, end = http.send(request) or b"", h11.EndOfMessage()
        writer.write(head + (http.send(h11.Data(data=content)) or b"") + (http.send(end) or b""))
        # A server may answer and close before it has read everything: then the answer counts.
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.EndOfMessage):
                reply.end()
                return
            else:
                reply.take(event)

    def _again(self) -> None:
        """Make the connection ready for the next request, or drop it."""
        try:
            self._http.start_next_cycle()
        except h11.LocalProtocolError:
            self.close()


class _Reply:
    """An answer as far as it has come."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._head: h11.Response | None = None
        self._unpacker = Unpacker("")
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def begun(self) -> bool:
        return self._head is not None

    def take(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self._head = event
            coding = next((v for n, v in event.headers if n == b"content-encoding"), b"")
            self._unpacker = Unpacker(coding.decode("latin-1"))
        elif isinstance(event, h11.Data):
            self._parts.append(self._unpacker.feed(bytes(event.data)))
            self._size += len(self._parts[-1])
            self._room.take(len(self._parts[-1]))
            if self._size > _MAX_BODY_BYTES:
                raise EOFError(f"the response is longer than {_MAX_BODY_BYTES >> 20} MiB")
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was closed")

    def end(self) -> None:
        self._unpacker.close()

    def whole(self, secrets: Sequence[str]) -> Reply:
        assert self._head is not None  # noqa: S101  # an answer ends only after it began
        headers = ((n.decode(), v.decode("latin-1")) for n, v in self._head.headers)
        body = b"".join(self._parts)
        for secret in secrets:
            body = body.replace(secret.encode(), b"***")
        names = {name: hidden(value, secrets) for name, value in headers}
        return Reply(self._head.status_code, body, names, tuple(secrets))

    def forget(self) -> None:
        self._room.give(self._size)
        self._size, self._parts = 0, []


def _secrets(headers: Sequence[tuple[str, str]], base: SplitResult) -> tuple[str, ...]:
    """Return what a server is told and nobody else may be."""
    told = [value.rpartition(" ")[2] for name, value in headers if name == "authorization"]
    return tuple(secret for secret in (*told, unquote(base.password or "")) if is_secret(secret))


def _headers(base: SplitResult, more: Mapping[str, str]) -> list[tuple[str, str]]:
    headers = {
        "host": base.netloc.rpartition("@")[2],
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "raycluster",
    }
    if base.username is not None:
        from base64 import b64encode

        pair = f"{unquote(base.username)}:{unquote(base.password or '')}"
        headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    return list((headers | dict(more)).items())
