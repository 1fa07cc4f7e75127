"""What a server says about an error, made fit to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHARS = 300


def error_text(body: object) -> str:
    """Return the message inside an error object, in whichever of its known shapes it came."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            inner = inner.get("message", inner)
        return str(inner)[:_CHARS]
    return str(body)[:_CHARS]


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
            text = str(said.get(name))
            if text.isascii() and text.isdigit() and 400 <= int(text[:4]) < 600:
                return int(text)
    return None


def printable(text: str) -> str:
    """Return the text on one short line; a server's may hold line ends and terminal controls."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(shown.split())[:_CHARS]
