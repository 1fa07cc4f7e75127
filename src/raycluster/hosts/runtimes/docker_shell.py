"""A shell inside a container: commands by `docker exec`, over the daemon's hijacked streams."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import docker

from raycluster.core.errors import CommandError, ConnectionLostError, HostError
from raycluster.core.interfaces import Channel, Completed
from raycluster.core.untrusted import ANSWER_BYTES, not_understood, too_much
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_http import PIECE, Hijacked

_LONGEST_PID = 20  # digits
SETTLE = 5.0  # seconds between the end of the output and the known exit code

# Docker has no call that ends an exec: the first line of output is the pid to end it by.
WITH_PID = ("/bin/sh", "-c", 'echo $$ && exec "$@"', "sh")
END = (
    "kill -TERM -$1 2>/dev/null || exit 0; for i in 1 2 3 4 5 6 7 8 9 10; do "
    "kill -0 -$1 2>/dev/null || exit 0; sleep 0.1; done; kill -KILL -$1"
)
PUT = (
    'umask 077 && mkdir -p "${1%/*}/" && cat >"$1.$$.part" '
    '&& [ "$(wc -c <"$1.$$.part")" -eq "$3" ] '
    '&& chmod "$2" "$1.$$.part" && mv -f "$1.$$.part" "$1" '
    '|| { rm -f "$1.$$.part"; exit 1; }'
)


class DockerShell:
    """Commands run as the container's user, in its environment and working folder."""

    def __init__(self, client: docker.APIClient, container: str, edge: Edge) -> None:
        self._client = client
        self._container = container
        self._edge = edge

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run to the end; after `timeout` seconds the command is ended and HostError raised."""
        written: dict[Channel, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        with self._edge.translated(f"running {argv[0]} in {self._container}"):
            command = _Exec(self._client, self._container, argv, env, stdin=bool(input))
            try:
                command.feed(input)
                for channel, data in command.output(timeout):
                    written[channel] += data
                    if sum(map(len, written.values())) > ANSWER_BYTES:
                        raise too_much(argv[0], self._edge.host, ANSWER_BYTES)
            except TimeoutError as error:
                raise HostError(
                    f"{argv[0]} did not finish within {timeout:g} s", where=self._edge.host
                ) from error
            finally:
                command.close()
            code = self._exit_code(command)
        return Completed(code, bytes(written["stdout"]), bytes(written["stderr"]))

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        """Yield output as it comes; closing the iterator ends the command and its children."""
        with self._edge.translated(f"running {argv[0]} in {self._container}"):
            command = _Exec(self._client, self._container, argv, env, stdin=False)
            try:
                yield from command.output(None, quiet)
            except TimeoutError as error:
                raise HostError(
                    f"{argv[0]} had no output for {quiet:g} s", where=self._edge.host
                ) from error
            finally:
                command.close()
            code = self._exit_code(command)
        if code:
            raise CommandError(
                f"{argv[0]} exited with status {code}", where=self._edge.host, status=code
            )

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Write a file whole or not at all, as the container's user."""
        size = str(len(content))
        done = self.run(("sh", "-c", PUT, "sh", path, f"{mode:o}", size), input=content)
        if done.exit_code:
            reason = done.error_text or "it was not received completely"
            raise HostError(f"cannot write {path}: {reason}", where=self._edge.host)

    def _exit_code(self, command: _Exec) -> int:
        code = command.exit_code(SETTLE)
        if code is None:  # docker-py and the daemon let a cut stream look like an ended one
            raise self._edge.lost(f"running a command in {self._container}")
        return code


class _Exec:
    """One started command."""

    def __init__(
        self,
        client: docker.APIClient,
        container: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        *,
        stdin: bool,
    ) -> None:
        self._client = client
        self._container = container
        created = client.exec_create(
            container, [*WITH_PID, *argv], stdin=stdin, environment=dict(env or {})
        )
        self._id: str = created["Id"]
        self._pid = ""
        self._ended = False
        self._stream = cast(Hijacked, client.exec_start(self._id, socket=True))

    def feed(self, data: bytes) -> None:
        """Write standard input and its end, beside the reading: both may have to wait."""
        if data:
            threading.Thread(target=self._write, args=(data,), daemon=True).start()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError, HostError):  # the reader sees the same break
            self._stream.sock.sendall(data)
            self._stream.sock.shutdown(socket.SHUT_WR)

    def output(
        self, timeout: float | None, quiet: float | None = None
    ) -> Iterator[tuple[Channel, bytes]]:
        """Yield what is written until the end; TimeoutError after `timeout` seconds.

        The same after `quiet` seconds without a word.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        head = b""
        for channel, data in _frames(self._stream, deadline, quiet):
            if self._pid or channel == "stderr":
                yield channel, data
                continue
            head += data
            first, newline, rest = head.partition(b"\n")
            if len(first) > _LONGEST_PID or (newline and not first.isdigit()):
                raise not_understood("the command's shell", "", first)
            if newline:
                self._pid = first.decode()
                if rest:
                    yield channel, rest
        self._ended = True

    def exit_code(self, patience: float) -> int | None:
        """Return the exit code; None if it runs on after its output."""
        deadline = time.monotonic() + patience
        while True:
            state = self._client.exec_inspect(self._id)
            if not state["Running"] and state["ExitCode"] is not None:
                return int(state["ExitCode"])
            if time.monotonic() > deadline:
                self._end()
                return None
            time.sleep(0.02)

    def close(self) -> None:
        """Close the stream and end the command, with its process group, if it has not ended."""
        self._stream.sock.close()
        self._stream.close()
        if not self._ended:
            self._end()

    def _end(self) -> None:
        if not self._pid:
            return
        with contextlib.suppress(docker.errors.APIError, ConnectionLostError):
            ending = self._client.exec_create(
                self._container, ["/bin/sh", "-c", END, "sh", self._pid], stdout=False, stderr=False
            )
            self._client.exec_start(ending["Id"], detach=True)


def _frames(
    stream: Hijacked, deadline: float | None, quiet: float | None
) -> Iterator[tuple[Channel, bytes]]:
    """Yield Docker's frames: one byte of channel, three unused, four of length, then the data.

    A frame may say that it has four gigabytes: it comes in pieces.
    """
    while header := _exactly(stream, 8, deadline, quiet):
        kind, length = struct.unpack(">BxxxL", header)
        while length:
            piece = _exactly(stream, min(length, PIECE), deadline, quiet)
            if not piece:
                raise ConnectionResetError("the stream ended inside a frame")
            length -= len(piece)
            yield ("stderr" if kind == 2 else "stdout"), piece


def _exactly(stream: Hijacked, size: int, deadline: float | None, quiet: float | None) -> bytes:
    """Return `size` bytes, or none at the end of the stream."""
    parts: list[bytes] = []
    while size:
        left = quiet if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        part = stream.read(size)
        if not part:
            if parts:
                raise ConnectionResetError("the stream ended inside a frame")
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
