"""The forwarder in this process: local listeners, each connection copied to a stream of its own."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import Event, Lock, Thread, current_thread
from typing import Protocol, Self

from raycluster.core.errors import ConnectionLostError, HostError, PortInUseError
from raycluster.core.interfaces import Address, ByteStream
from raycluster.tunnel.ports import LOOPBACK, Forward

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


BACKLOG = 1024
GRACE = 1.0
"""Seconds that open connections get to end by themselves when the forwarder is closed."""


class Dialer(Protocol):
    """The one thing that is needed of a transport."""

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream: ...


def silent(_line: str) -> None:
    """Say nothing."""


class ChannelForwarder:
    """A context manager: inside it, each forward's local port leads to its remote address.

    `forwards` have their local ports chosen. `tell` gets a line when a remote address refuses, and
    no further one about it until it has answered. Raises PortInUseError on entry.
    """

    def __init__(
        self, dialer: Dialer, forwards: Sequence[Forward], tell: Callable[[str], None] = silent
    ) -> None:
        self._dialer = dialer
        self._forwards = tuple(forwards)
        self._tell = tell
        self._lock = Lock()
        self._relays: dict[SocketRelay, Thread] = {}
        self._refused: set[str] = set()
        self._ended = Event()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for forward in self._forwards:
                selector.register(
                    stack.enter_context(_listen(forward)), selectors.EVENT_READ, forward
                )
            waker, wake = socket.socketpair()
            selector.register(stack.enter_context(waker), selectors.EVENT_READ, None)
            acceptor = Thread(target=self._accept, args=(selector,), daemon=True)
            stack.callback(acceptor.join)
            stack.callback(wake.close)
            stack.callback(self._ended.set)
            acceptor.start()
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        with self._lock:
            relays = dict(self._relays)
        for relay in relays:
            relay.abort()
        deadline = time.monotonic() + GRACE
        for thread in relays.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        for relay, thread in relays.items():
            relay.force()
            thread.join(GRACE)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        while not self._ended.is_set():
            for key, _ in selector.select():
                if isinstance(key.data, Forward) and isinstance(key.fileobj, socket.socket):
                    self._accept_one(key.fileobj, key.data)

    def _accept_one(self, listener: socket.socket, forward: Forward) -> None:
        try:
            local, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # out of file descriptors or memory: the client waits in the backlog meanwhile
            self._ended.wait(0.05)
            return
        try:
            Thread(target=self._serve, args=(local, forward), daemon=True).start()
        except RuntimeError:
            reset(local)  # no more threads on this machine

    def _serve(self, local: socket.socket, forward: Forward) -> None:
        try:
            local.setblocking(True)
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote = self._dialer.connect(forward.remote)
        except (OSError, EOFError, HostError) as error:
            reset(local)
            self._note_refusal(forward, error)
            return
        self._refused.discard(forward.name)
        self._relay(SocketRelay(local, remote))

    def _relay(self, relay: SocketRelay) -> None:
        with self._lock:
            self._relays[relay] = current_thread()
        if self._ended.is_set():
            relay.abort()
        try:
            relay.run()
        finally:
            with self._lock:
                del self._relays[relay]

    def _note_refusal(self, forward: Forward, error: Exception) -> None:
        with self._lock:
            known = forward.name in self._refused
            self._refused.add(forward.name)
        # a lost connection is told once, by who keeps it
        lost = isinstance(error, ConnectionLostError)
        if not known and not lost and not self._ended.is_set():
            what = error.what if isinstance(error, HostError) else str(error)
            self._tell(f"{forward.name}: {forward.target} does not respond: {what}")


def _listen(forward: Forward) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, forward.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"cannot listen on {LOOPBACK}:{forward.port} for {forward.name}: {error.strerror}",
            where="this machine",
            hint="stop the program that uses this port, or choose another local port",
        ) from error
    listener.setblocking(False)
    return listener
