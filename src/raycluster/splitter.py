"""Whole lines of chunks that end anywhere; no byte is looked at more often than a few times."""

from __future__ import annotations

from raycluster.errors import HostError


class LineSplitter:
    """Makes lines of chunks; one of more than `longest` bytes is handed out in parts.

    With `where`, the name of a host or program, such a line is an error.
    """

    def __init__(self, longest: int, where: str = "") -> None:
        self._longest = longest
        self._where = where
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends. Raises HostError."""
        *lines, last = chunk.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest.extend(last)
        if len(self._rest) > self._longest:
            if self._where:
                what = f"a line of its output is longer than {self._longest / 1e6:.0f} MB"
                raise HostError(what, where=self._where)
            lines += self.end()
        return lines

    def end(self) -> list[bytes]:
        """Return what was left without a line end."""
        rest = bytes(self._rest)
        self._rest.clear()
        return [rest] if rest else []
