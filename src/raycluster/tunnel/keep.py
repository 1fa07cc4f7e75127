"""Keeps a tunnel open: which way it goes, and what happens when the connection breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, repeat
from threading import Event
from typing import Protocol

from raycluster.core.errors import (
    ConnectionLostError,
    HostError,
    HostKeyError,
    PortInUseError,
    UnreachableError,
)
from raycluster.core.interfaces import Tell, Transport
from raycluster.hosts.transports.ssh_master import available
from raycluster.tunnel.channels import ChannelForwarder
from raycluster.tunnel.link import TunnelLink
from raycluster.tunnel.ports import Forward, describe
from raycluster.tunnel.system import SystemForwarder

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts to connect again; the last one repeats."""


UNREMARKABLE = (ConnectionLostError, UnreachableError)
"""What every attempt gives while the host is away."""


@dataclass(frozen=True)
class Route:
    """How the host called `host` is reached.

    `command` is the system's ssh with everything it needs and the destination as its last word, or
    empty when that must not be used. `open_transport` is the way where that fails. With neither,
    the host is this machine.
    """

    host: str
    command: tuple[str, ...] = ()
    open_transport: Callable[[], Transport] | None = None

    @property
    def local(self) -> bool:
        """Whether there is nothing to forward."""
        return not self.command and self.open_transport is None


class OpenTunnel(Protocol):
    """A connection that is open."""

    def wait(self, stop: Event) -> None:
        """Return when `stop` is set. Raises HostError when the connection breaks."""


Connect = Callable[[], AbstractContextManager[OpenTunnel]]


def keep(route: Route, forwards: Sequence[Forward], tell: Tell, stop: Event) -> None:
    """Forward until `stop` is set; after a break, connect again and again on the same local ports.

    `forwards` have their local ports chosen. Returns at once when the host is this machine. Raises
    HostError when the first connection fails, and later only for a host key that changed.
    """
    if route.local:
        _tell_local(forwards, tell)
    elif not _through_system(route, forwards, tell, stop) and route.open_transport is not None:
        link = TunnelLink(route.open_transport, route.host)
        with ChannelForwarder(link, forwards, tell):
            _Loop(link.connected, describe(forwards, route.host), tell, stop).run()


def _tell_local(forwards: Sequence[Forward], tell: Tell) -> None:
    for forward in forwards:
        tell(f"{forward.name}  {forward.url.format(port=forward.remote[1])}  (on this machine)")


def _through_system(route: Route, forwards: Sequence[Forward], tell: Tell, stop: Event) -> bool:
    """Forward with the system's ssh; return False when that did not even connect once."""
    if not available(route.command):
        if route.open_transport is None:
            raise HostError(f"there is no {route.command[0]} on this machine", where=route.host)
        return False
    loop = _Loop(
        lambda: SystemForwarder(route.command, forwards, route.host),
        describe(forwards, route.host),
        tell,
        stop,
    )
    try:
        loop.run()
    except PortInUseError:
        raise
    except HostError as error:
        if loop.opened or route.open_transport is None:
            raise
        tell(f"the system's ssh does not connect ({error.what}): trying the built-in client")
        return False
    return True


class _Loop:
    """Connects, waits for the break, connects again."""

    def __init__(self, connect: Connect, lines: Sequence[str], tell: Tell, stop: Event) -> None:
        self.opened = False
        self._connect = connect
        self._lines = lines
        self._tell = tell
        self._stop = stop
        self._delays = chain(DELAYS, repeat(DELAYS[-1]))
        self._lost_at = 0.0
        self._told: set[type[HostError]] = set()

    def run(self) -> None:
        """Return when `stop` is set."""
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    self._note_open()
                    connection.wait(self._stop)
            except HostKeyError:
                raise
            except HostError as error:
                if not self.opened:
                    raise
                self._note_lost(error)
                self._stop.wait(next(self._delays))

    def _note_open(self) -> None:
        if not self.opened:
            for line in self._lines:
                self._tell(line)
        else:
            self._tell(f"connected again after {time.monotonic() - self._lost_at:.1f} s")
        self.opened = True
        self._told.clear()
        self._delays = chain(DELAYS, repeat(DELAYS[-1]))

    def _note_lost(self, error: HostError) -> None:
        """Say why, once per kind of reason: the first is the loss itself."""
        if not self._told:
            self._lost_at = time.monotonic()
            self._tell(f"connection lost ({error.what}): connecting again")
        elif type(error) not in self._told and not isinstance(error, UNREMARKABLE):
            self._tell(f"still not connected: {error.what}")
        self._told.add(type(error))
