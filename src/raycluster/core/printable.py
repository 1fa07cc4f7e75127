"""Makes the words of others harmless for a terminal: what would command it is shown as its escape.

Pure. What a host, an image, a model or an answer says reaches a person through here alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TextIO

LONGEST = 10_000
"""Characters of a line for people; the rest of it is counted."""

# C0 but tab and line feed, DEL, C1; format characters (bidirectional, zero width, tags); line and
# paragraph separators; surrogates. As a list: to ask unicodedata of all takes half a second.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f]"
)
_SGR = re.compile(r"(\x1b\[[0-9;:]{0,40}m)")
_RESET = "\x1b[0m"


def printable(text: str, longest: int | None = LONGEST) -> str:
    r"""Return the text with `\x1b` and the like in place of what is no letter, sign or line end.

    Lines end after `longest` characters, and say how many are left out.
    """
    if _UNSAFE.search(text):
        text = _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))
    if longest is None or len(text) <= longest:
        return text
    return "\n".join(_cut(line, longest) for line in text.split("\n"))


def printable_log(text: str) -> str:
    """Return a line of a log in which nothing but colours is left to the terminal, ended there."""
    parts = _SGR.split(text)
    parts[::2] = [printable(part, None) for part in parts[::2]]
    return "".join(parts) + (_RESET if len(parts) > 1 and parts[-2:] != [_RESET, ""] else "")


def without_colours(text: str) -> str:
    """Return a line of a log without the colours that `printable_log` leaves."""
    return _SGR.sub("", text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _cut(line: str, longest: int) -> str:
    left = len(line) - longest
    return f"{line[:longest]}... and {left:,} more characters" if left > 0 else line


class PrintableStream:
    """A stream for people that writes what is printable alone; `raw` is the stream beneath."""

    def __init__(self, raw: TextIO, longest: int | None = None) -> None:
        self.raw = raw
        self._longest = longest

    def write(self, text: str) -> int:
        """Write the text; return its length."""
        self.raw.write(printable(text, self._longest))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the stream has
        return getattr(self.raw, name)
