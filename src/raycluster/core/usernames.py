"""Which names of users sshd may know, and no program on the way takes for anything else. Pure."""

from __future__ import annotations

import re

LONGEST = 256
_RULES = (
    (r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "line breaks and control characters"),
    (r"['\"`;&<>|(){}/:]|\$(?!$)|\\$", "quotes and shell signs"),
    (r"[^\S ]|^\s|\s$|\s-", "spaces at an end or before a `-`"),
)
"""As ssh refuses on its command line, and a bit more: `:` and `/`, which no name can have."""


def wrong_user(name: str) -> str:
    """Return what is wrong with a user's name, "" when nothing is."""
    if not name:
        return "a user name is expected"
    if len(name) > LONGEST:
        return f"a user name of at most {LONGEST} characters is expected"
    if name.startswith("-"):
        return "a user name must not begin with `-`, which other programs read as an option"
    if name.startswith("@") or name.endswith("@"):
        return "only a user name is allowed; set the address with `host`"
    for pattern, what in _RULES:
        if re.search(pattern, name):
            return f"a user name without {what} is expected"
    return ""
