"""From what sources wrote to the lines that a person reads; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from raycluster.core.errors import UsageError
from raycluster.core.printable import printable, printable_log, without_colours

LONGEST = 1_000_000  # bytes; what has no line end after so many is shown as a line
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_FOUND, _RESET = "\x1b[1;31m", "\x1b[0m"


class Whole:
    """Makes whole lines of chunks that end anywhere."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends."""
        *lines, last = chunk.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest.extend(last)
        return [*lines, *self.end()] if len(self._rest) > LONGEST else lines

    def end(self) -> list[bytes]:
        """Return what was left without a line end."""
        rest = bytes(self._rest)
        self._rest.clear()
        return [rest] if rest else []


def pattern(text: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """Return the expression of `--grep`. Raises UsageError."""
    try:
        text.encode()  # an argument that is no UTF-8 would find nothing
        return re.compile(text, re.IGNORECASE if ignore_case else 0)
    except (re.error, UnicodeEncodeError) as error:
        raise UsageError(
            f"{text!r} is not a valid regular expression: {error}", where="--grep"
        ) from None


@dataclass
class View:
    """How lines are shown: with their source before them, in colour, and which of them.

    What a source said in colour is kept, but for a line in which something was found: there the
    find alone is coloured. Of all else that a terminal would obey the escape is shown; a carriage
    return ends a line.
    """

    prefix: bool = False
    colour: bool = False
    grep: re.Pattern[str] | None = None
    _seen: dict[str, str] = field(default_factory=dict)

    def line(self, label: str, line: bytes) -> bytes | None:
        """Return a line as it is shown, with its end, or None where it is not asked for."""
        text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        shown = [s for part in text.split("\r") if (s := self._part(label, part)) is not None]
        return "".join(shown).encode() if shown else None

    def _part(self, label: str, line: str) -> str | None:
        shown = printable_log(line)
        if self.grep:
            plain = without_colours(line)
            if not self.grep.search(plain):
                return None
            shown = "".join(self._marked(plain)) if self.colour else shown
        return f"{self._before(label)}{shown}\n"

    def _before(self, label: str) -> str:
        if not self.prefix:
            return ""
        if label not in self._seen:
            name = printable(label)
            number = _COLOURS[len(self._seen) % len(_COLOURS)]
            self._seen[label] = f"\x1b[{number}m{name}{_RESET}  " if self.colour else f"{name}  "
        return self._seen[label]

    def _marked(self, line: str) -> Iterator[str]:
        at = 0
        for found in self.grep.finditer(line) if self.grep else ():
            if found.end() > found.start():
                before, what = line[at : found.start()], found[0]
                yield printable(before, None) + _FOUND + printable(what, None) + _RESET
                at = found.end()
        yield printable(line[at:], None)
