"""Hosts as people give them: `root@10.0.0.1:55089`, or the ssh command that a provider shows."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from typing import Any

from raycluster.errors import UsageError

HINT = "give user@address:port, or the ssh command as it was shown to you"
_OPTIONS_WITH_VALUE = set("bBcDeEFIiJLlmOoPpQRSWw")  # of OpenSSH's client


def parse_host(given: str) -> dict[str, Any]:
    """Return the keys of a host's table. Raises UsageError for what names no host."""
    if given.strip() == "local":
        return {"transport": "local"}
    table = _ssh_command(given) if re.match(r"\s*ssh\s", given) else _place(given.strip())
    if not table.get("host") or any(str(v).startswith("-") for v in table.values()):
        raise UsageError(f"no host in {given!r}", where="--host", hint=HINT)
    return table


def _place(text: str) -> dict[str, Any]:
    user, _, place = text.removeprefix("ssh://").rstrip("/").rpartition("@")
    colons = place.count(":")
    if match := re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", place):
        host, port = match[1], match[2]
    elif colons > 1 and "[" not in place:
        host, port = place, None
        before, _, last = place.rpartition(":")
        if last.isdecimal() and _is_address(before):
            raise UsageError(
                f"{text!r} may name a port or not",
                where="--host",
                hint=f"[{before}]:{last} or [{place}]",
            )
    elif match := re.fullmatch(r"([^:\s]+)(?::(\d+))?", place):
        host, port = match[1], match[2]
    else:
        raise UsageError(f"no host in {text!r}", where="--host", hint=HINT)
    table: dict[str, Any] = {"host": host}
    if port is not None:
        table["port"] = _port(port)
    if user:
        table["user"] = user
    return table


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _ssh_command(text: str) -> dict[str, Any]:
    try:
        words = shlex.split(text)[1:]
    except ValueError as error:
        raise UsageError(f"cannot read {text!r}: {error}", where="--host", hint=HINT) from error
    options, places = _options(words)
    table = _place(places[0]) if places else {}
    if "p" in options:
        table["port"] = _port(options["p"])
    for letter, key in (("l", "user"), ("i", "identity_file"), ("J", "proxy_jump")):
        if letter in options:
            table[key] = options[letter]
    return table


def _options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the value of each one-letter option, and the words that are not options."""
    options: dict[str, str] = {}
    places: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if not re.match(r"-[A-Za-z0-9]", word):
            places.append(word)
            continue
        for position, letter in enumerate(word[1:], start=2):
            if letter in _OPTIONS_WITH_VALUE:
                options[letter] = word[position:] or next(remaining, "")
                break
    return options, places


def _port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 65536:
        return int(text)
    raise UsageError(f"{text!r} is not a port", where="--host", hint=HINT)
