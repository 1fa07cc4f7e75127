"""This machine, reached without SSH: subprocesses and sockets."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from raycluster.core.clean_environment import cleaned
from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import Address, ByteStream, Channel, Completed
from raycluster.core.untrusted import ANSWER_BYTES, too_much

CHUNK = 65536
GRACE = 2.0  # seconds between TERM and KILL


class LocalTransport:
    """Run commands as the current user, in the home folder, each in a session of its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def address(self) -> str:
        """The IP address of this machine to itself."""
        return "127.0.0.1"

    @property
    def alive(self) -> bool:
        """True: there is no connection that could break."""
        return True

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run to the end; a program that is not there ends with 127, as in a shell."""
        try:
            child = self._spawn(argv, env, subprocess.PIPE)
        except OSError as error:
            return Completed(_shell_status(error), b"", f"{argv[0]}: {error.strerror}\n".encode())
        written: dict[Channel, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        end = None if timeout is None else time.monotonic() + timeout
        with child:
            try:
                for channel, data in _talk(child, lambda: _left(end), input):
                    written[channel] += data
                    if sum(map(len, written.values())) > ANSWER_BYTES:
                        raise too_much(argv[0], self._name, ANSWER_BYTES)
                child.wait(_left(end))
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                raise HostError(
                    f"{argv[0]} did not finish within {timeout:g} s", where=self._name
                ) from error
            finally:
                _end(child)
        return Completed(
            _told(child.returncode), bytes(written["stdout"]), bytes(written["stderr"])
        )

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        try:
            child = self._spawn(argv, env, subprocess.DEVNULL)
        except OSError as error:
            raise CommandError(
                f"{argv[0]}: {error.strerror}", where=self._name, status=_shell_status(error)
            ) from error
        with child:
            try:
                yield from _talk(child, lambda: quiet)
                child.wait()
            except TimeoutError as error:
                raise HostError(
                    f"{argv[0]} had no output for {quiet:g} s", where=self._name
                ) from error
            finally:
                _end(child)
        if status := _told(child.returncode):
            raise CommandError(f"{argv[0]} ended with {status}", where=self._name, status=status)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Write a file whole or not at all; a relative path begins in the home folder."""
        target = Path.home() / path
        try:
            _make_private(target.parent)
            _replace(target, content, mode)
        except OSError as error:
            raise HostError(f"cannot write {target}: {error.strerror}", where=self._name) from error

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        """Open a TCP or Unix stream; it has no timeout once it is open."""
        try:
            if isinstance(address, tuple):
                stream = socket.create_connection(address, timeout)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                stream = _connect_unix(address, timeout)
        except OSError as error:
            place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
            reason = error.strerror or str(error)
            raise HostError(f"cannot connect to {place}: {reason}", where=self._name) from error
        stream.settimeout(None)
        return stream

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _spawn(
        self, argv: Sequence[str], env: Mapping[str, str] | None, stdin: int
    ) -> subprocess.Popen[bytes]:
        whole = {**cleaned(os.environ), **(env or {})}
        program = shutil.which(argv[0], path=whole.get("PATH")) or argv[0]
        home = Path.home()
        if not os.path.isdir(home):  # noqa: PTH112  # False too where a folder above is closed
            raise HostError(
                f"the home folder {home} does not exist",
                where=self._name,
                hint="set HOME to your own folder",
            )
        if any("\0" in word for word in (*argv, *(env or {}).values())):
            raise HostError(f"cannot run {argv[0]}: it contains a NUL character", where=self._name)
        return subprocess.Popen(
            tuple(argv),
            executable=program,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=whole,
            cwd=home,
            start_new_session=True,
        )


def _told(status: int) -> int:
    """Return a status as a shell tells it."""
    return 128 - status if status < 0 else status


def _shell_status(error: OSError) -> int:
    return 127 if isinstance(error, FileNotFoundError) else 126


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, with everything in its session's first process group."""
    if child.poll() is not None:
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
            return


def _left(end: float | None) -> float | None:
    return None if end is None else end - time.monotonic()


def _talk(
    child: subprocess.Popen[bytes], patience: Callable[[], float | None], content: bytes = b""
) -> Iterator[tuple[Channel, bytes]]:
    """Write `content` and yield what is written; TimeoutError after what `patience` returns."""
    names: dict[IO[bytes] | None, Channel] = {child.stdout: "stdout", child.stderr: "stderr"}
    rest = memoryview(content)
    with selectors.DefaultSelector() as ready:
        for pipe, name in names.items():
            assert pipe is not None  # noqa: S101 - both were asked for
            ready.register(pipe, selectors.EVENT_READ, name)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            ready.register(child.stdin, selectors.EVENT_WRITE)
        while ready.get_map():
            left = patience()
            if (left is not None and left <= 0) or not (events := ready.select(left)):
                raise TimeoutError
            for key, _ in events:
                if key.data is None:
                    rest = _written(key.fd, rest)
                    done, chunk = not rest, b""
                else:
                    chunk = os.read(key.fd, CHUNK)
                    done = not chunk
                if chunk:
                    yield key.data, chunk
                if done:
                    ready.unregister(key.fileobj)
                    cast("IO[bytes]", key.fileobj).close()


def _written(pipe: int, rest: memoryview) -> memoryview:
    """Write what a pipe takes, and return what is left; nothing where nobody reads it."""
    try:
        return rest[os.write(pipe, rest[:CHUNK]) :] if rest else rest
    except BlockingIOError:
        return rest
    except OSError:  # it ended without reading everything; its status says more
        return rest[:0]


def _make_private(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _replace(target: Path, content: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _connect_unix(path: str, timeout: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(timeout)
        stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream
