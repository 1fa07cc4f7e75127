"""Reads one answer: the events of a stream of OpenAI's APIs or Anthropic's, or a whole object.

Knows no sockets and no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.bench.record import Failure
from raycluster.serve.asking.result import error_text, failure_in, printable

MAX_EVENT_BYTES = 16 * 1024 * 1024
_LINE_BYTES = 40
"""What a line takes beside its value."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its `data` lines joined by line feeds, and its name."""

    data: bytes
    name: bytes = b""


class SseParser:
    """Takes chunks in order and gives events as soon as their blank line is there.

    It works on bytes because text has more line ends (U+2028, U+0085) than the format has.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._skip_lf = False
        self._started = False
        self._data: list[bytes] = []
        self._size = 0
        self._name = b""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events that this chunk completes; ValueError when one grows beyond 16 MiB."""
        lines = self._after_cr(chunk).splitlines(keepends=True)
        last = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        if lines and not last:
            self._skip_lf = lines[-1].endswith(b"\r")
        self._tail.extend(last)
        events = []
        for line in lines:
            event = self._line(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        if self.held > MAX_EVENT_BYTES:
            raise ValueError("an event exceeds 16 MiB")
        return events

    @property
    def held(self) -> int:
        """Bytes of the event that is not complete."""
        return self._size + len(self._tail)

    def close(self) -> list[ServerEvent]:
        """Return the event that only lacks its blank line, where the stream ended there."""
        lines = (bytes(self._tail), b"") if self._tail else (b"",)
        events = [event for line in lines if (event := self._line(line)) is not None]
        self._tail.clear()
        return events

    def _after_cr(self, chunk: bytes) -> bytes:
        """Drop the LF of a CR LF that was cut in two."""
        if not chunk:
            return chunk
        skip, self._skip_lf = self._skip_lf, False
        return chunk[1:] if skip and chunk.startswith(b"\n") else chunk

    def _line(self, line: bytes) -> ServerEvent | None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + _LINE_BYTES
        elif name == b"event":
            self._name = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(b"\n".join(self._data), self._name) if self._data else None
        self._data, self._size, self._name = [], 0, b""
        return event


MOST_TOKENS = 10**12
"""No answer has more tokens: what says so cannot count."""
_ENDS = {"response.completed", "response.incomplete", "message_stop"}
_TEXT = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


class IncompleteAnswerError(Exception):
    """The stream cannot be counted as a complete answer."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = printable(detail)


@dataclass(slots=True)
class StreamedAnswer:
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

    def take(self, event: ServerEvent, now: float) -> None:
        """Take in one event that was read at `now`; raises AnswerError."""
        if event.data == b"[DONE]":
            self.done = True
            return
        try:
            message = json.loads(event.data)
        except (ValueError, RecursionError) as error:
            raise IncompleteAnswerError(
                "protocol", f"an event is not JSON: {event.data[:80]!r}"
            ) from error
        if not isinstance(message, dict):
            raise IncompleteAnswerError(
                "protocol", f"an event is not an object: {event.data[:80]!r}"
            )
        kind = message.get("type")
        failed = event.name == b"error" or "error" in (kind, message.get("object"))
        if failed or message.get("error"):
            raise IncompleteAnswerError("stream_error", error_text(message))
        if isinstance(kind, str):
            self._typed(kind, message, now)
            return
        self._usage(message.get("usage"))
        choices = message.get("choices")
        if choices and isinstance(choices, list):
            self._choices(choices, now)

    def take_whole(self, content: bytes, now: float) -> None:
        """Take in an answer that is no stream, read at `now`; raises AnswerError."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise IncompleteAnswerError("protocol", f"not JSON: {content[:80]!r}") from error
        if not isinstance(body, dict):
            raise IncompleteAnswerError("protocol", f"not an object: {content[:80]!r}")
        if failure := failure_in(body):
            raise IncompleteAnswerError("stream_error", error_text(failure))
        usage = body.get("usage")
        self._usage(usage)
        if self.input_tokens is None and isinstance(usage, dict):
            self.input_tokens = _count(usage.get("total_tokens"), None)  # as rerankers say it
        if self.input_tokens is not None and self.output_tokens is None:
            self.output_tokens = 0
        self.last_event = now

    def finish(self) -> None:
        """Check that the answer is complete; raises AnswerError."""
        if not self.done:
            raise IncompleteAnswerError(
                "truncated", "the stream ended without [DONE] or another end"
            )
        if self.first_event is None:
            raise IncompleteAnswerError("protocol", "the stream held no token")

    def _typed(self, kind: str, message: Mapping[str, Any], now: float) -> None:
        """Take in an event of responses or of Anthropic's messages, where deltas carry tokens."""
        delta = message.get("delta")
        if kind.endswith(".delta") or kind == "content_block_delta":
            self._tokens(now)
            if delta:
                self._text(now)
            return
        whole = message.get("response", message.get("message", message))
        whole = whole if isinstance(whole, dict) else {}
        self._usage(whole.get("usage"))
        if kind == "response.failed":
            raise IncompleteAnswerError("stream_error", error_text(whole))
        if isinstance(delta, dict):
            self._reason(delta.get("stop_reason"))
        if kind.startswith("response.") and kind in _ENDS:
            details = whole.get("incomplete_details")
            self._reason(details.get("reason") if isinstance(details, dict) else "stop")
        self.done = self.done or kind in _ENDS

    def _tokens(self, now: float) -> None:
        if self.last_event is None:
            self.first_event = now
        else:
            self.gaps.append(now - self.last_event)
        self.last_event = now

    def _text(self, now: float) -> None:
        self.last_token = now
        self.first_token = now if self.first_token is None else self.first_token

    def _reason(self, reason: object) -> None:
        if isinstance(reason, str) and reason:
            self.finish_reason = printable(reason[:100])

    def _choices(self, choices: list[Any], now: float) -> None:
        self._tokens(now)
        for choice in choices:
            if not isinstance(choice, dict):
                raise IncompleteAnswerError("protocol", "a choice is not an object")
            if has_text(choice):
                self._text(now)
            reason = choice.get("finish_reason")
            if choice.get("error") or reason == "error":
                raise IncompleteAnswerError("stream_error", error_text(choice))
            self._reason(reason)

    def _usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        for name in ("prompt_tokens", "input_tokens"):
            self.input_tokens = _count(usage.get(name), self.input_tokens)
        for name in ("completion_tokens", "output_tokens"):
            self.output_tokens = _count(usage.get(name), self.output_tokens)
        for name in ("prompt_tokens_details", "input_tokens_details"):
            details = usage.get(name)
            if isinstance(details, dict):
                self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)
        cached = _count(usage.get("cache_read_input_tokens"), None)
        if cached is not None:  # Anthropic's input_tokens are the others
            self.cached_tokens = cached
            written = _count(usage.get("cache_creation_input_tokens"), 0) or 0
            self.input_tokens = (_count(usage.get("input_tokens"), 0) or 0) + cached + written


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
