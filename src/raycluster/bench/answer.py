"""Reads the events of one streamed answer; knows the OpenAI API, no sockets and no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.bench.record import Failure
from raycluster.bench.sse import Event
from raycluster.openai_wire.said import error_text, printable

MOST_TOKENS = 10**12
"""No answer has more tokens: what says so cannot count."""
_TEXT = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


class AnswerError(Exception):
    """The stream cannot be counted as a complete answer."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = printable(detail)


@dataclass(slots=True)
class Answer:
    """What has come so far; times are those given to `take`."""

    first_event: float | None = None
    last_event: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    gaps: list[float] = field(default_factory=list)
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False

    def take(self, event: Event, now: float) -> None:
        """Take in one event that was read at `now`; raises AnswerError."""
        if event.data == b"[DONE]":
            self.done = True
            return
        try:
            message = json.loads(event.data)
        except (ValueError, RecursionError) as error:
            raise AnswerError("protocol", f"an event is not JSON: {event.data[:80]!r}") from error
        if not isinstance(message, dict):
            raise AnswerError("protocol", f"an event is not an object: {event.data[:80]!r}")
        if message.get("error") or event.name == b"error":
            raise AnswerError("stream_error", error_text(message))
        self._usage(message.get("usage"))
        choices = message.get("choices")
        if choices and isinstance(choices, list):
            self._choices(choices, now)

    def finish(self) -> None:
        """Check that the answer is complete; raises AnswerError."""
        if not self.done:
            raise AnswerError("truncated", "the stream ended without [DONE]")
        if self.first_event is None:
            raise AnswerError("protocol", "the stream held no token")

    def _choices(self, choices: list[Any], now: float) -> None:
        if self.last_event is None:
            self.first_event = now
        else:
            self.gaps.append(now - self.last_event)
        self.last_event = now
        for choice in choices:
            if not isinstance(choice, dict):
                raise AnswerError("protocol", "a choice is not an object")
            if has_text(choice):
                self.last_token = now
                self.first_token = now if self.first_token is None else self.first_token
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:
                self.finish_reason = printable(reason[:100])

    def _usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        self.input_tokens = _count(usage.get("prompt_tokens"), self.input_tokens)
        self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)


def has_text(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice carries anything that the model wrote."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in _TEXT)


def _count(value: object, before: int | None) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return before
    return value if 0 <= value <= MOST_TOKENS else before
