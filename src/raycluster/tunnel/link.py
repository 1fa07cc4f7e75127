"""A transport that may be replaced by a new one while forwards refer to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from raycluster.core.errors import ConnectionLostError, HostError
from raycluster.core.interfaces import Address, ByteStream, Transport

TICK = 0.2
ANSWER_SECONDS = 20.0

# Writes now and then, so that it ends on a host whose connection to us broke.
PULSE = ("sh", "-c", "while echo; do sleep 15; done")


class TunnelLink:
    """A dialer over the transport of the moment; between two transports it refuses at once."""

    def __init__(self, open_transport: Callable[[], Transport], host: str) -> None:
        self._open_transport = open_transport
        self._host = host
        self._transport: Transport | None = None
        self._reason = ""
        self._began = Event()
        self._broke = Event()

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        """Open a stream to an address as the host sees it. Raises HostError."""
        transport = self._transport
        if transport is None:
            raise ConnectionLostError("not connected at the moment", where=self._host)
        return transport.connect(address, timeout=timeout)

    @contextmanager
    def connected(self) -> Iterator[TunnelLink]:
        """Inside it there is a transport. Raises HostError when none can be opened."""
        transport = self._open_transport()
        self._began, self._broke = Event(), Event()
        pulse = Thread(target=self._watch, args=(transport, self._began, self._broke), daemon=True)
        try:
            pulse.start()
            self._await_session()
            self._transport = transport
            yield self
        finally:
            self._transport = None
            transport.close()
            pulse.join(5)

    def wait(self, stop: Event) -> None:
        while not stop.wait(TICK):
            if self._broke.is_set():
                raise ConnectionLostError(self._reason, where=self._host)

    def _await_session(self) -> None:
        """Wait for the session: until a connection has had one, sshd holds small packets back."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._began.wait(TICK):
            if self._broke.is_set():
                raise ConnectionLostError(self._reason, where=self._host)
            if time.monotonic() > deadline:
                raise ConnectionLostError("the host does not run commands", where=self._host)

    def _watch(self, transport: Transport, began: Event, broke: Event) -> None:
        reason = "the session on the host ended"
        try:
            for _ in transport.stream(PULSE):
                began.set()
        except HostError as error:
            reason = error.what
        if self._broke is broke:
            self._reason = reason
        broke.set()
