"""Bodies that a server packed although nobody asked it to; the standard library alone."""

from __future__ import annotations

import zlib

_ASKED = frozenset({"", "identity"})
_READ = frozenset({"gzip", "x-gzip", "deflate"})
_EITHER = zlib.MAX_WBITS + 32
"""gzip's header or zlib's, whichever is there."""
_MOST = 64 * 1024 * 1024
"""Bytes out of one piece: more is no answer."""


class CodingError(Exception):
    """The body cannot be read."""


class Unpacker:
    """Takes a body in pieces; `coding` is its content-encoding. Raises CodingError."""

    def __init__(self, coding: str) -> None:
        name = coding.strip().lower()
        if name not in _ASKED | _READ:
            raise CodingError(f"the answer is packed by {name[:40]}, which nobody asked for")
        self._unpack = None if name in _ASKED else zlib.decompressobj(_EITHER)
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """Return what a piece unpacks to; raises CodingError."""
        if self._unpack is None:
            return piece
        self._begun = self._begun or bool(piece)
        try:
            plain = self._unpack.decompress(piece, _MOST)
        except zlib.error as error:
            raise CodingError(f"the packed answer is damaged: {error}") from error
        if self._unpack.unconsumed_tail:
            raise CodingError("the packed answer is too large")
        return plain

    def close(self) -> None:
        """Raise CodingError when the end is missing."""
        if self._unpack is not None and self._begun and not self._unpack.eof:
            raise CodingError("the packed answer ends too early")
