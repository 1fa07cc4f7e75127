"""A transport that does nothing on its host once the lease of the run has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raycluster.core.interfaces import Address, ByteStream, Channel, Completed, Transport


class Lease(Protocol):
    """What a run may change hosts by. Both raise LockedError where it has ended."""

    def valid(self) -> None:
        """Return where it surely goes on; asks nobody."""

    def check(self) -> None:
        """Return where the host that keeps it says so."""


@dataclass(frozen=True)
class Fenced:
    """A transport; `valid` is called before each command, each file and whatever is sent."""

    transport: Transport
    valid: Callable[[], None]

    @property
    def address(self) -> str:
        return self.transport.address

    @property
    def alive(self) -> bool:
        return self.transport.alive

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        self.valid()
        return self.transport.run(argv, input=input, env=env, timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        self.valid()
        return self.transport.stream(argv, env=env, quiet=quiet)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self.valid()
        self.transport.put(path, content, mode=mode)

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        self.valid()
        return _Stream(self.transport.connect(address, timeout=timeout), self.valid)

    def close(self) -> None:
        self.transport.close()


class _Stream:
    def __init__(self, stream: ByteStream, valid: Callable[[], None]) -> None:
        self._stream = stream
        self._valid = valid
        self.recv = stream.recv
        self.settimeout = stream.settimeout
        self.shutdown = stream.shutdown
        self.close = stream.close

    def sendall(self, data: bytes, /) -> None:
        self._valid()
        self._stream.sendall(data)
