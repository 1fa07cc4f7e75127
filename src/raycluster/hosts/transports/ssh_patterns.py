"""The `*`, `?` and `!` patterns of ssh config and known_hosts files."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from string import ascii_lowercase, ascii_uppercase

_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def lowered(text: str) -> str:
    """Return a text with the letters of ASCII, and no others, in lower case, as OpenSSH does."""
    return text.translate(_LOWER)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Tell whether a pattern matches and no pattern that begins with `!` does."""
    found = False
    for pattern in patterns:
        if _fits(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _fits(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    return fnmatchcase(name, pattern.replace("[", "[[]"))  # it alone gives brackets a meaning
