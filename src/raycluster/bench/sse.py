"""Server-sent events out of bytes that arrive in pieces of any size."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 1024 * 1024
_LINE_BYTES = 40
"""What a line takes beside its value."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its `data` lines joined by line feeds, and its name."""

    data: bytes
    name: bytes = b""


class SseParser:
    """Takes chunks in order and gives events as soon as their blank line is there.

    It works on bytes because text has more line ends (U+2028, U+0085) than the format has.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._skip_lf = False
        self._started = False
        self._data: list[bytes] = []
        self._size = 0
        self._name = b""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events that this chunk completes; ValueError when one grows beyond 16 MiB."""
        lines = self._after_cr(chunk).splitlines(keepends=True)
        last = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        if lines and not last:
            self._skip_lf = lines[-1].endswith(b"\r")
        self._tail.extend(last)
        events = []
        for line in lines:
            event = self._line(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        if self.held > MAX_EVENT_BYTES:
            raise ValueError("an event exceeds 16 MiB")
        return events

    @property
    def held(self) -> int:
        """Bytes of the event that is not complete."""
        return self._size + len(self._tail)

    def close(self) -> list[ServerEvent]:
        """Return the event that only lacks its blank line, where the stream ended there."""
        lines = (bytes(self._tail), b"") if self._tail else (b"",)
        events = [event for line in lines if (event := self._line(line)) is not None]
        self._tail.clear()
        return events

    def _after_cr(self, chunk: bytes) -> bytes:
        """Drop the LF of a CR LF that was cut in two."""
        if not chunk:
            return chunk
        skip, self._skip_lf = self._skip_lf, False
        return chunk[1:] if skip and chunk.startswith(b"\n") else chunk

    def _line(self, line: bytes) -> ServerEvent | None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + _LINE_BYTES
        elif name == b"event":
            self._name = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(b"\n".join(self._data), self._name) if self._data else None
        self._data, self._size, self._name = [], 0, b""
        return event
