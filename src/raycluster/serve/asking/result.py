"""A request of a batch, what came of it, and the line that is kept of that; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


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
