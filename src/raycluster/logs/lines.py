"""From what sources wrote to the lines that a person reads; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from raycluster.errors import UsageError

LONGEST = 1_000_000  # bytes; what has no line end after so many is shown as a line
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_FOUND, _RESET = b"\x1b[1;31m", b"\x1b[0m"
_ESCAPE = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


class Whole:
    """Makes whole lines of chunks that end anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[bytes]:
        """Return what was left without a line end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def pattern(text: str, *, ignore_case: bool = False) -> re.Pattern[bytes]:
    """Return the expression of `--grep`, for lines as bytes of UTF-8. Raises UsageError."""
    try:
        return re.compile(text.encode(), re.IGNORECASE if ignore_case else 0)
    except (re.error, UnicodeEncodeError) as error:
        raise UsageError(f"{text!r} is no regular expression: {error}", where="--grep") from None


@dataclass
class View:
    """How lines are shown: with their source before them, in colour, and which of them.

    What a source said in colour is kept, but for a line in which something was found: there the
    find alone is coloured.
    """

    prefix: bool = False
    colour: bool = False
    grep: re.Pattern[bytes] | None = None
    _seen: dict[str, bytes] = field(default_factory=dict)

    def line(self, label: str, line: bytes) -> bytes | None:
        """Return a line as it is shown, with its end, or None where it is not asked for."""
        line = line.removesuffix(b"\r")
        if self.grep:
            plain = _ESCAPE.sub(b"", line)
            if not self.grep.search(plain):
                return None
            line = b"".join(self._marked(plain)) if self.colour else line
        return self._before(label) + line + b"\n"

    def _before(self, label: str) -> bytes:
        if not self.prefix:
            return b""
        if not self.colour:
            return label.encode() + b"  "
        if label not in self._seen:
            number = _COLOURS[len(self._seen) % len(_COLOURS)]
            self._seen[label] = b"\x1b[%dm%s%s  " % (number, label.encode(), _RESET)
        return self._seen[label]

    def _marked(self, line: bytes) -> Iterator[bytes]:
        at = 0
        for found in self.grep.finditer(line) if self.grep else ():
            if found.end() > found.start():
                yield line[at : found.start()] + _FOUND + found[0] + _RESET
                at = found.end()
        yield line[at:]
