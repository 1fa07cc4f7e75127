"""What a server says about an error, made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

_CHARS = 300
_KNOWN = 8
"""Characters of a secret that are hidden where a text was cut behind them."""
_LEAST = 4


def error_text(body: object) -> str:
    """Return the message inside an error object, in whichever of its known shapes it came."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            inner = inner.get("message", inner)
        body = inner
    try:
        return str(body)[:_CHARS]
    except RecursionError:
        return "an error that is nested too deeply"


def is_secret(text: str) -> bool:
    """Tell whether a key is one: `x` and its like are told to servers that want none."""
    return len(text) >= _LEAST


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return the text without the secrets, nor their beginnings where it was cut."""
    for secret in secrets:
        begin = secret[:_KNOWN]
        at = text.find(begin) if is_secret(secret) else -1
        while at >= 0:
            both = zip(text[at:], secret, strict=False)
            length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            text = f"{text[:at]}***{text[at + length :]}"
            at = text.find(begin, at + 3)
    return text


def failure_in(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the object that says that this is an error in place of an answer; None for an answer.

    Some servers and gateways say so with status 200.
    """
    if "error" in (body.get("object"), body.get("type")):
        return body
    if body.get("error") or body.keys() == {"error"}:
        return body
    if body.get("object") == "response" and body.get("status") in {"failed", "cancelled"}:
        return body
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and (
            choice.get("error") or choice.get("finish_reason") == "error"
        ):
            return choice
    return None


def status_in(failure: Mapping[str, Any]) -> int | None:
    """Return the HTTP status that an error names as its code, where it does."""
    inner = failure.get("error")
    for said in (inner if isinstance(inner, dict) else {}, failure):
        for name in ("code", "status", "status_code"):
            text = str(code) if isinstance(code := said.get(name), str | int) else ""
            if re.fullmatch("[45][0-9]{2}", text):
                return int(text)
    return None


def printable(text: str) -> str:
    """Return the text on one short line; a server's may hold line ends and terminal controls."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(shown.split())[:_CHARS]
