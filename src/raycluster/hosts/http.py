"""HTTP to a port of a host: httpx over a Transport's streams, or by a program that asks there.

An answer is bounded as a whole, in bytes and in time; it is read as it came, never unpacked, and
its text is UTF-8 whatever it calls itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from raycluster.core.errors import HostError
from raycluster.core.interfaces import ByteStream, Secret, Transport
from raycluster.core.untrusted import ANSWER_BYTES

LEAST_S = 10.0
"""Seconds for a whole answer, at least; else twice what each part of it may take."""


WHOLE_S = 30.0
"""Seconds for an answer of a hub or registry."""
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


class _Limits(threading.local):
    """What the request that this thread makes may still take; seconds of the monotonic clock."""

    end: float | None = None


_limits = _Limits()


@contextmanager
def _until(end: float | None) -> Iterator[None]:
    """Set this thread's limit, and turn httpcore's errors into httpx's."""
    _limits.end = end
    try:
        yield
    except httpcore.ConnectError as error:
        raise httpx.ConnectError(str(error)) from error
    except httpcore.TimeoutException as error:
        raise httpx.ReadTimeout(str(error)) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise httpx.ReadError(str(error)) from error
    finally:
        _limits.end = None


def _within(timeout: float | None) -> float | None:
    """Return how long one step may take. Raises TimeoutError where the whole took too long."""
    if _limits.end is None:
        return timeout
    left = _limits.end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the response takes too long")
    return left if timeout is None else min(left, timeout)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._stream.settimeout(_within(timeout))
            return self._stream.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._stream.settimeout(_within(timeout))
            self._stream.sendall(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  # httpcore's signature
        return False if info == "is_readable" else None


class _Backend(httpcore.NetworkBackend):
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002  # the far side has no choice of it
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        try:
            return _Stream(self._transport.connect((host, port), timeout=timeout or 10.0))
        except HostError as error:
            raise httpcore.ConnectError(error.what) from error


Ask = Callable[[bytes, float], bytes]
"""Takes a whole request and its seconds, returns the whole answer. Raises HostError."""


class AskError(HostError):
    """There is no answer, as where nothing listens."""


class _Asked(httpcore.NetworkStream):
    """One request, sent as a whole when its answer is read."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._request = b""
        self._answer: bytes | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._answer is None:
            try:
                self._answer = self._ask(self._request, timeout or 60.0)
            except AskError as error:
                raise httpcore.ConnectError(error.what) from error
        piece, self._answer = self._answer[:max_bytes], self._answer[max_bytes:]
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._request += buffer

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  # httpcore's signature
        return False if info == "is_readable" else None


class _AskingBackend(httpcore.NetworkBackend):
    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def connect_tcp(self, *_: object, **__: object) -> httpcore.NetworkStream:
        return _Asked(self._ask)


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response, end: float | None) -> None:
        self._response = response
        self._end = end

    def __iter__(self) -> Any:  # noqa: ANN401  # httpcore types its stream loosely
        size = 0
        with _until(self._end):
            for piece in self._response.iter_stream():
                size += len(piece)
                if size > ANSWER_BYTES:
                    raise httpx.ReadError(f"the response is larger than {ANSWER_BYTES >> 20} MiB")
                yield piece

    def close(self) -> None:
        self._response.close()


class _Adapter(httpx.BaseTransport):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._pool = httpcore.ConnectionPool(network_backend=backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        ask = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        allowed = (request.extensions.get("timeout") or {}).get("read")
        end = None if allowed is None else time.monotonic() + max(LEAST_S, 2 * allowed)
        with _until(end):
            answer = self._pool.handle_request(ask)
        return httpx.Response(
            answer.status,
            headers=_plain(answer.headers),
            stream=_Body(answer, end),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without those that say how the content has to be decoded."""
    kept = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
    return [(n, v.partition(b";")[0] if n.lower() == b"content-type" else v) for n, v in kept]


def http_client(transport: Transport, port: int, *, timeout: float = 30.0) -> httpx.Client:
    """Return a client of `http://127.0.0.1:PORT` on the host; `timeout` in seconds.

    Whoever holds the port gets what is asked: no secret may be in it.
    """
    return _client(_Backend(transport), port, {}, timeout)


def asking_client(ask: Ask, port: int, *, token: str, timeout: float = 30.0) -> httpx.Client:
    """Return a client whose requests, with the token, `ask` carries one by one.

    What `ask` raises comes through, but an AskError is httpx's ConnectError. Raises HostError for a
    token that no header can carry: it comes from a host.
    """
    if token and not Secret(token).fits_header:
        raise HostError(
            "the cluster token on the hosts is not valid",
            hint="run raycluster down, then raycluster up",
        )
    who = {"Authorization": f"Bearer {token}"} if token else {}
    return _client(_AskingBackend(ask), port, {**who, "Connection": "close"}, timeout)


def _client(
    backend: httpcore.NetworkBackend, port: int, headers: dict[str, str], timeout: float
) -> httpx.Client:
    headers = {"Accept-Encoding": "identity", **headers}
    return httpx.Client(
        transport=_Adapter(backend),
        base_url=f"http://127.0.0.1:{port}",
        headers=headers,
        timeout=timeout,
        trust_env=False,
    )


def whole_answer(
    client: httpx.Client,
    url: str,
    *,
    seconds: float = WHOLE_S,
    **more: Any,  # noqa: ANN401
) -> httpx.Response:
    """GET from anywhere: the answer with all of its body, bounded too; httpx's errors.

    A thread of its own asks: a head that comes byte by byte would be waited for by each byte.
    """
    came: list[httpx.Response | Exception] = []

    def ask() -> None:
        try:
            came.append(_asked(client, url, seconds, more))
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        raise httpx.ReadTimeout("the response takes too long")
    if isinstance(came[0], Exception):
        raise came[0]
    return came[0]


def _asked(
    client: httpx.Client, url: str, seconds: float, more: Mapping[str, Any]
) -> httpx.Response:
    end, body = time.monotonic() + seconds, bytearray()
    with client.stream("GET", url, **more) as answer:
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > ANSWER_BYTES or time.monotonic() > end:
                raise httpx.ReadError("the response is too large, or takes too long")
    kept = [(n, v) for n, v in answer.headers.multi_items() if n.lower() not in _OF_THE_BODY]
    return httpx.Response(
        answer.status_code, headers=kept, content=bytes(body), request=answer.request
    )
