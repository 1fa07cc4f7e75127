"""One local connection and its stream to the far side: bytes both ways, each end told the truth."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from threading import Thread

from raycluster.core.errors import HostError
from raycluster.core.interfaces import ByteStream

CHUNK = 65536
BROKEN = (OSError, EOFError, HostError)
"""What a stream raises when it, or the connection that carries it, is gone."""


def reset(local: socket.socket) -> None:
    """Close so that the peer gets an error, not an end: what it has read so far is not all."""
    with suppress(OSError):
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    local.close()


class SocketRelay:
    """Copies until both directions have ended or one broke; a slow reader holds up only itself."""

    def __init__(self, local: socket.socket, remote: ByteStream) -> None:
        self._local = local
        self._remote = remote
        self._broken = False

    def run(self) -> None:
        """Copy both ways; returns when both ends are closed."""
        up = Thread(target=self._copy, args=(self._local, self._remote), daemon=True)
        try:
            up.start()
            self._copy(self._remote, self._local)
            up.join()
        except RuntimeError:
            self.abort()  # no more threads on this machine
        finally:
            self._close()

    def _copy(self, source: ByteStream, sink: ByteStream) -> None:
        try:
            while data := source.recv(CHUNK):
                sink.sendall(data)
            if not self._broken:
                sink.shutdown(socket.SHUT_WR)
        except BROKEN:
            self.abort()

    def abort(self) -> None:
        """End both directions; the local client will see a reset."""
        self._broken = True
        # wakes our own reads; SHUT_WR here would send the clean end that a reset should replace
        with suppress(OSError):
            self._local.shutdown(socket.SHUT_RD)
        with suppress(*BROKEN):
            self._remote.shutdown(socket.SHUT_RDWR)
        with suppress(*BROKEN):
            self._remote.close()

    def force(self) -> None:
        """After `abort`: also end a write that waits for a client that does not read."""
        with suppress(OSError):
            self._local.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        if self._broken:
            reset(self._local)
        else:
            self._local.close()
        with suppress(*BROKEN):
            self._remote.close()
