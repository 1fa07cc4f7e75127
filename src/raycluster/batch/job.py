"""From a line of the input to the request that is sent for it; pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from raycluster.openai_client.lines import EVERY, BadIdError, RefusedLineError, parse_line
from raycluster.openai_client.prompts import Defaults, to_prompt
from raycluster.serve.asking.result import AskedLine, Result


@dataclass(frozen=True)
class RequestShape:
    """How lines become requests: `model` stands above a line's own, `default_model` below it.

    `column` is the field that holds a line's prompt.
    """

    endpoint: str = "chat"
    max_tokens: int | None = None
    model: str = ""
    default_model: str = ""
    column: str = ""

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits over everything above: equal ones make equal requests."""
        facts = [self.endpoint, self.max_tokens, self.model, self.default_model]
        facts += [self.column] if self.column else []  # so outputs of before it stay what they are
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is no request, and why."""

    line: int
    custom_id: str
    reason: str

    @property
    def result(self) -> Result:
        """The error that its line of the output holds."""
        error = ("invalid_line", f"line {self.line}: {self.reason}")
        return Result(self.line, self.custom_id, error=error)


def to_job(line: int, item: bytes, shape: RequestShape) -> AskedLine | Refused:
    """Return the request of an item; it asks for one whole answer, never for a stream."""
    try:
        request = parse_line(item, EVERY, shape.column)
    except RefusedLineError as error:
        return Refused(line, error.id or f"line-{line}", str(error))
    prompt = to_prompt(line, request, Defaults(shape.endpoint, shape.max_tokens))
    body = {key: v for key, v in prompt.body.items() if key not in {"stream", "stream_options"}}
    model = shape.model or prompt.model or shape.default_model
    if model:
        body = {"model": model, **body}
    content = json.dumps(body, separators=(",", ":")).encode()
    return AskedLine(line, prompt.id, prompt.path, content)


@dataclass(frozen=True, slots=True)
class Named:
    """An item's id, and why it is no request, or why what it has for an id is none."""

    id: str
    refused: str = ""
    bad_id: str = ""


def id_of(line: int, item: bytes, column: str = "") -> Named:
    """Return how the result of an item will be called."""
    own = f"line-{line}"
    try:
        return Named(parse_line(item, EVERY, column).id or own)
    except BadIdError as error:
        return Named(own, bad_id=str(error))
    except RefusedLineError as error:
        return Named(error.id or own, str(error))
