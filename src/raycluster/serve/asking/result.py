"""A request of a batch, how its body is coded, what came of it, and what is kept of that; pure."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any


@dataclass(frozen=True, slots=True)
class AskedLine:
    """The request of line `line`."""

    line: int
    custom_id: str
    path: str
    content: bytes


@dataclass(frozen=True)
class Fingerprint:
    """What an output file belongs to."""

    input: str
    options: str

    def id(self, line: int) -> str:
        """Return the id of the result of an input line."""
        return f"batch-{self.input}-{self.options}-{line}"


@dataclass(frozen=True)
class Result:
    """What came of a line. `body` is JSON as the server sent it; without `error` all is well."""

    line: int
    custom_id: str
    status: int | None = None
    request_id: str = ""
    body: bytes = b"null"
    error: tuple[str, str] | None = None

    def encode(self, fingerprint: Fingerprint) -> bytes:
        """Return the line of the output file."""
        name = json.dumps(self.custom_id)
        response = b"null"
        if self.status is not None:
            request = json.dumps(self.request_id)
            head = f'{{"status_code": {self.status}, "request_id": {request}, "body": '
            response = head.encode() + self.body + b"}"
        error: dict[str, object] | None = None
        if self.error is not None:
            error = {"code": self.error[0], "message": self.error[1], "line": self.line}
        begin = f'{{"id": "{fingerprint.id(self.line)}", "custom_id": {name}, "response": '.encode()
        return begin + response + f', "error": {json.dumps(error)}}}\n'.encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; the names of `headers` are in lower case.

    What is told of it shows none of the `secrets`, which the server knows.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


class UnansweredError(Exception):
    """No whole answer came. `reached` tells whether any of it did."""

    def __init__(self, code: str, detail: str, *, reached: bool) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.reached = reached


_ASKED = frozenset({"", "identity"})
_READ = frozenset({"gzip", "x-gzip", "deflate"})
_EITHER = zlib.MAX_WBITS + 32
"""gzip's header or zlib's, whichever is there."""
_MOST = 64 * 1024 * 1024
"""Bytes out of one piece: more is no answer."""


class CodingError(Exception):
    """The body cannot be read."""


class Unpacker:
    """Takes a body in pieces; `coding` is its content-encoding. Raises CodingError."""

    def __init__(self, coding: str) -> None:
        name = coding.strip().lower()
        if name not in _ASKED | _READ:
            raise CodingError(f"the answer is packed by {name[:40]}, which nobody asked for")
        self._unpack = None if name in _ASKED else zlib.decompressobj(_EITHER)
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """Return what a piece unpacks to; raises CodingError."""
        if self._unpack is None:
            return piece
        self._begun = self._begun or bool(piece)
        try:
            plain = self._unpack.decompress(piece, _MOST)
        except zlib.error as error:
            raise CodingError(f"the packed answer is damaged: {error}") from error
        if self._unpack.unconsumed_tail:
            raise CodingError("the packed answer is too large")
        return plain

    def close(self) -> None:
        """Raise CodingError when the end is missing."""
        if self._unpack is not None and self._begun and not self._unpack.eof:
            raise CodingError("the packed answer ends too early")


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
