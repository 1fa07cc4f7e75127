"""The socket under an SSH connection: reads ahead, and notices a peer that has gone silent."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Protocol

READ_AHEAD = 65536
_LONGEST_WAIT = 1.0
_OPENING = 200  # bytes


class SshWire(Protocol):
    """What a connection is carried by: a TCP socket, or a channel of the jump host."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class WatchedSocket:
    """A wire that ends when nothing was read from it for `silence` seconds.

    Every wait, for reading or for writing, counts, so that a peer which stopped in the middle of
    an upload is noticed as well. A wait counts for a second at most: a laptop that slept, or a
    process that was stopped, gets its full time after it wakes.
    """

    def __init__(self, wire: SshWire) -> None:
        self._wire = wire
        self._ahead = memoryview(b"")
        self._silence: float | None = None
        self._idle = 0.0
        self._checked = time.monotonic()
        self._closed = False  # asked for by name: paramiko.Transport.stop_thread
        self.fell_silent = False
        self.ended = False
        """Whether the peer closed its end, or the wire broke."""
        self.opening = b""
        """What the peer sent first."""

    def watch(self, silence: float) -> None:
        """Begin to count; `silence` in seconds."""
        self._idle = 0.0
        self._silence = silence

    def recv(self, size: int) -> bytes:
        """Return some bytes; none at the end, on a broken wire, or when the peer is silent."""
        if not self._ahead:
            try:
                self._ahead = memoryview(self._wire.recv(max(size, READ_AHEAD)))
            except TimeoutError:
                if self._is_silent():
                    return b""
                raise
            except OSError:  # paramiko formats only errors that carry a number
                self._ahead = memoryview(b"")
            self.ended = not self._ahead
            if not self.opening:
                self.opening = bytes(self._ahead[:_OPENING])
            self._idle = 0.0
            self._checked = time.monotonic()
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken.tobytes()

    def send(self, data: bytes) -> int:
        """Send some of the bytes; raises TimeoutError to be asked again, OSError at the end."""
        try:
            return self._wire.send(data)
        except TimeoutError:
            if self._is_silent():
                raise BrokenPipeError("the peer is silent") from None
            raise

    def _is_silent(self) -> bool:
        now = time.monotonic()
        self._idle += min(now - self._checked, _LONGEST_WAIT)
        self._checked = now
        self.fell_silent = self._silence is not None and self._idle > self._silence
        return self.fell_silent

    def settimeout(self, seconds: float | None) -> None:
        """Set the longest wait of one call, in seconds."""
        self._wire.settimeout(seconds)

    def close(self) -> None:
        """Close the wire and wake whoever waits on it."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._wire.close()
