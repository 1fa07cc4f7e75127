"""The Docker SDK over streams that a transport opens: its HTTP connections are ours to make.

What is read of a daemon is bounded: an answer in bytes and in time, a stream in the pieces that it
comes in and in the time that it may be silent.
"""

from __future__ import annotations

import io
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import requests
import requests.adapters
import urllib3
import urllib3.connection
from docker.constants import DEFAULT_DOCKER_API_VERSION

from raycluster.core.errors import HostError
from raycluster.core.interfaces import ByteStream
from raycluster.core.untrusted import ANSWER_BYTES, lines, read_json, too_much

Opener = Callable[[], ByteStream]
"""Opens one more stream to the daemon's socket."""

READ_AHEAD = 65536
PIECE = 65536
DAEMON = "the Docker daemon"
QUIET_S = 1200.0
"""Seconds without a byte after which a stream is given up, but for one that a person follows."""
BLOCK = 32704  # one SSH packet of paramiko's default size holds it whole


def open_client(
    opener: Opener, *, timeout: float = 60.0, quiet: float | None = QUIET_S
) -> docker.APIClient:
    """Return a client that has sent nothing yet; `timeout` in seconds is that of each answer.

    `quiet` is how long a stream may be silent, None for ever.
    """
    return _Client(opener, timeout, quiet)


def newest_info(client: docker.APIClient) -> dict[str, Any]:
    """Return what the daemon says about itself, in the newest version of its own API.

    Older versions lack what came since: devices by name (CDI) are told since 1.50.
    """
    told: dict[str, Any] = client.info()
    offered = str(client.version().get("ApiVersion") or "")
    if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", offered):
        return told
    if _number(offered) <= _number(str(client.api_version)):
        return told
    answer = client.get(f"{client.base_url}/v{offered}/info", timeout=client.timeout)
    newest = answer.json() if answer.ok else None
    return newest if isinstance(newest, dict) else told


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


class _Client(docker.APIClient):
    """Begins with the newest API version that the SDK knows and takes the daemon's if refused.

    Every answer of a daemon names its version, so no request is spent on asking.
    """

    def __init__(self, opener: Opener, timeout: float, quiet: float | None) -> None:
        super().__init__("tcp://docker:1", version=DEFAULT_DOCKER_API_VERSION, timeout=int(timeout))
        self.trust_env = False  # no proxy and no .netrc between us and the socket
        self.base_url = "http+docker://stream"
        self._quiet = quiet
        self.mount(self.base_url, _Adapter(opener, self._settle, quiet))

    def _settle(self, version: str) -> None:
        self._version = version

    def _disable_socket_timeout(self, socket: Hijacked) -> None:
        """Let a stream be silent for as long as it may be: the SDK would wait for ever."""
        socket.settimeout(self._quiet)

    # The SDK reads a chunk or a frame whole, of whatever size it says that it is.
    def _stream_helper(self, response: requests.Response, decode: bool = False) -> Iterator[Any]:
        if not getattr(response.raw, "chunked", False):  # an error, or an older daemon
            yield self._result(response, json=decode)  # type: ignore[attr-defined]
            return
        pieces = response.raw.stream(PIECE, decode_content=False)
        if not decode:
            yield from pieces
            return
        for line in lines(pieces, DAEMON):
            if line.strip():
                yield read_json(line, DAEMON).table()

    def _multiplexed_response_stream_helper(self, response: requests.Response) -> Iterator[bytes]:
        self._disable_socket_timeout(
            self._get_raw_response_socket(response)  # type: ignore[attr-defined]
        )
        while len(header := response.raw.read(8)) == 8:
            _, left = struct.unpack(">BxxxL", header)
            while left:
                if not (data := response.raw.read(min(left, PIECE))):
                    return
                left -= len(data)
                yield data


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, opener: Opener, settle: Callable[[str], None], quiet: float | None) -> None:
        self._quiet = quiet
        self._pool = _Pool("docker", maxsize=10, blocksize=BLOCK, opener=opener)
        self._settle = settle
        super().__init__()

    def send(
        self,
        request: requests.PreparedRequest,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> requests.Response:
        """Send once; once more where the daemon speaks another version of its API."""
        kwargs["timeout"] = kwargs.get("timeout") or self._quiet
        response = self._answer(request, *args, **kwargs)
        offered = response.headers.get("Api-Version", "")
        if response.status_code != 400 or not offered or b"client version" not in response.content:
            return response
        if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", offered):
            return response
        self._settle(offered)
        again = request.copy()
        again.url = _with_version(request.url or "", offered)
        return self._answer(again, *args, **kwargs)

    def _answer(
        self,
        request: requests.PreparedRequest,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> requests.Response:
        """Return an answer, with all of its body where that is no stream."""
        response = super().send(request, *args, **kwargs)
        response.encoding = "utf-8"
        if not kwargs.get("stream") or response.status_code >= 400:
            timeout = kwargs["timeout"]
            end = time.monotonic() + 2 * timeout if isinstance(timeout, int | float) else None
            response._content = _body(response, end)
            response._content_consumed = True  # type: ignore[attr-defined]
        return response

    def get_connection_with_tls_context(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        return self._pool

    def request_url(self, request: requests.PreparedRequest, *_: object) -> str:
        return request.path_url

    def close(self) -> None:
        super().close()
        self._pool.close()


def _body(response: requests.Response, end: float | None) -> bytes:
    """Read a body, as it came. Raises AnswerError and requests' errors."""
    whole = bytearray()
    for piece in response.raw.stream(PIECE, decode_content=False):
        whole += piece
        if len(whole) > ANSWER_BYTES:
            raise too_much(DAEMON, "", ANSWER_BYTES)
        if end is not None and time.monotonic() > end:
            raise requests.exceptions.ReadTimeout("the response takes too long")
    return bytes(whole)


def _with_version(url: str, version: str) -> str:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}/v{version}/{path.partition('/')[2]}"


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, *args: Any, opener: Opener, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._opener = opener
        self._hijacks = False

    def connect(self) -> None:
        """Open a stream; HostError passes through requests as it is."""
        carrier = Carrier(self._opener())
        carrier.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
        carrier.hijacked = self._hijacks
        self.sock = carrier

    def getresponse(self) -> Any:  # noqa: ANN401  # urllib3's own type
        """Return the answer once its headers came, which may not drip in for ever."""
        timeout = self.sock.gettimeout() if isinstance(self.sock, Carrier) else None
        if timeout and isinstance(self.sock, Carrier):
            self.sock.end = time.monotonic() + 2 * timeout
        try:
            return super().getresponse()
        finally:
            if isinstance(self.sock, Carrier):
                self.sock.end = None

    def putheader(self, header: str | bytes, *values: Any) -> None:  # noqa: ANN401
        """Notice an Upgrade: bytes that follow its answer belong to the stream, not to HTTP."""
        if header.lower() in ("upgrade", b"upgrade"):
            self._hijacks = True
            if isinstance(self.sock, Carrier):
                self.sock.hijacked = True
        super().putheader(header, *values)  # type: ignore[arg-type]  # urllib3's says less

    @property
    def is_connected(self) -> bool:
        """Whether a connection from the pool can still be used."""
        return isinstance(self.sock, Carrier) and self.sock.is_quiet()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class Carrier:
    """What http.client, urllib3 and docker-py ask of a socket, over a ByteStream."""

    def __init__(self, stream: ByteStream) -> None:
        self.hijacked = False
        self._stream = stream
        self._timeout: float | None = None
        self._readers = 0
        self._closed = False
        self.end: float | None = None
        """When what is waited for has to be there, in seconds of the monotonic clock."""
        self.sendall = stream.sendall

    def recv_into(self, buffer: memoryview) -> int:
        if self.end is not None and time.monotonic() > self.end:
            raise TimeoutError("the response takes too long")
        data = self._stream.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        self._stream.settimeout(seconds)

    def gettimeout(self) -> float | None:
        return self._timeout

    def shutdown(self, how: int) -> None:
        self._stream.shutdown(how)
        if how == socket.SHUT_RDWR:
            self._stream.close()

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(Hijacked(self), 1 if self.hijacked else READ_AHEAD)

    def is_quiet(self) -> bool:
        """Return whether the stream is open and holds no byte; a byte read here is lost."""
        try:
            self._stream.settimeout(0)
            self._stream.recv(1)
        except (BlockingIOError, TimeoutError):
            self._stream.settimeout(self._timeout)
            return True
        except (OSError, HostError):
            return False
        return False

    def release(self) -> None:
        """Count one reader less; http.client closes the socket before the last byte is read."""
        self._readers -= 1
        if self._closed and not self._readers:
            self._stream.close()

    def close(self) -> None:
        self._closed = True
        if not self._readers:
            self._stream.close()


class Hijacked(io.RawIOBase):
    """What docker-py reads, or hands out; it looks for `sock` and `settimeout` here."""

    def __init__(self, carrier: Carrier) -> None:
        self.sock = carrier
        self.settimeout = carrier.settimeout
        self.gettimeout = carrier.gettimeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer has no name in 3.11
        return self.sock.recv_into(memoryview(buffer).cast("B"))

    def close(self) -> None:
        if not self.closed:
            self.sock.release()
        super().close()
