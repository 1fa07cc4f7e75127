"""The `*`, `?` and `!` patterns of ssh config and known_hosts files."""

from __future__ import annotations

import re
from collections.abc import Iterable


def matches(patterns: Iterable[str], name: str) -> bool:
    """Tell whether a pattern matches and no pattern that begins with `!` does."""
    found = False
    for pattern in patterns:
        if _regex(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c, re.escape(c)) for c in pattern), re.DOTALL)
