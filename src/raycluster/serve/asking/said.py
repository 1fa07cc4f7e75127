"""What a server says about an error, made fit to be shown."""

from __future__ import annotations

_CHARS = 300


def error_text(body: object) -> str:
    """Return the message inside an error object, in whichever of its known shapes it came."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            inner = inner.get("message", inner)
        return str(inner)[:_CHARS]
    return str(body)[:_CHARS]


def printable(text: str) -> str:
    """Return the text on one short line; a server's may hold line ends and terminal controls."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(shown.split())[:_CHARS]
