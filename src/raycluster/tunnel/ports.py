"""What is forwarded, and which local port it gets."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raycluster.core.errors import PortInUseError

LOOPBACK = "127.0.0.1"
HIGHEST = 65535


@dataclass(frozen=True)
class Forward:
    """One address of the far side and the local port that leads to it.

    `remote` is host and port as the far side sees them; `local_port` None means the remote's port.
    """

    name: str
    remote: tuple[str, int]
    local_port: int | None = None
    url: str = "http://127.0.0.1:{port}"

    @property
    def port(self) -> int:
        """The local port that is wanted or, after `choose_ports`, taken."""
        return self.remote[1] if self.local_port is None else self.local_port

    @property
    def address(self) -> str:
        """What a person opens on this machine."""
        return self.url.format(port=self.port)

    @property
    def target(self) -> str:
        """The remote address as `host:port`, an IPv6 address in brackets."""
        host, port = self.remote
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose_ports(forwards: Sequence[Forward]) -> tuple[Forward, ...]:
    """Give each forward its wanted local port or, where that is taken, the next free one.

    No forward gets a port that another one wants. Raises PortInUseError when none is left.
    """
    wanted = {forward.port for forward in forwards}
    given: set[int] = set()
    chosen = []
    for forward in forwards:
        port = _first_free(forward, given, wanted - {forward.port})
        given.add(port)
        chosen.append(replace(forward, local_port=port))
    return tuple(chosen)


def _first_free(forward: Forward, given: set[int], reserved: set[int]) -> int:
    for port in range(forward.port, HIGHEST + 1):
        if port not in given and port not in reserved and is_free(port):
            return port
    raise PortInUseError(
        f"no free local port from {forward.port} up for {forward.name}",
        where="this machine",
        hint="stop one of the programs that listen on 127.0.0.1",
    )


def is_free(port: int) -> bool:
    """Tell whether we may listen on this port of 127.0.0.1 and nothing answers there now."""
    with socket.socket() as probe:
        # as ssh's own listener does: a port with connections in TIME_WAIT is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    with socket.socket() as client:
        # macOS lets us bind beside a program that listens on all addresses
        client.settimeout(1.0)
        return client.connect_ex((LOOPBACK, port)) != 0


def describe(forwards: Sequence[Forward], host: str) -> tuple[str, ...]:
    """Return one aligned line per forward: name, local URL, what it leads to on `host`."""
    names = max((len(forward.name) for forward in forwards), default=0)
    urls = max((len(forward.address) for forward in forwards), default=0)
    return tuple(
        f"{forward.name:<{names}}  {forward.address:<{urls}}  ->  {host}:{forward.target}"
        + ("" if forward.port == forward.remote[1] else "  (another local port)")
        for forward in forwards
    )
