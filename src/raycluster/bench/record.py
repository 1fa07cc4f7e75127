"""What is kept of each request: when things happened, what came, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Failure = Literal[
    "connect", "tunnel", "timeout", "http_status", "stream_error", "truncated", "protocol"
]
"""connect: no connection; tunnel: the way to the cluster broke; timeout: not done in time;
http_status: another status than 200; stream_error: the stream said that it failed;
truncated: it ended before it was complete; protocol: what came is not what the API promises."""

FAILURES: tuple[Failure, ...] = get_args(Failure)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. Times are seconds since the level began, on one monotonic clock.

    `intended` is when the schedule wanted it sent; `sent` is just before it was handed to the
    HTTP client. `first_event` and `last_event` are the first and last events with choices
    (vLLM's notion of a token's arrival), `first_token` and `last_token` those that carried text
    or a tool call. `gaps` lie between events with choices. Token counts are the server's.
    """

    id: str
    line: int
    repeat: int
    intended: float
    sent: float
    end: float
    headers: float | None = None
    first_event: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    last_event: float | None = None
    gaps: tuple[float, ...] = ()
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    status: int | None = None
    failure: Failure | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether a complete answer came."""
        return self.failure is None

    @property
    def events(self) -> int:
        """How many events with choices came."""
        return 0 if self.first_event is None else len(self.gaps) + 1

    def to_json(self) -> dict[str, Any]:
        """Return a line of requests.jsonl; seconds are rounded to the microsecond."""
        return {field.name: _rounded(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> RequestRecord:
        """Return the record that `to_json` wrote; KeyError or TypeError when it is not one."""
        known = {field.name: line[field.name] for field in fields(cls)}
        return cls(**{**known, "gaps": tuple(known["gaps"])})


def checked(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what another machine wrote of a request; TypeError or KeyError for other kinds."""
    gaps = line["gaps"]
    if not isinstance(gaps, list) or not all(_is_number(gap) for gap in gaps):
        raise TypeError("gaps")
    for name in (*_TIMES, *_COUNTS):
        absent = line[name] is None and name not in _REQUIRED
        if not absent and not _is_number(line[name], whole=name in _COUNTS):
            raise TypeError(name)
    texts = (line["id"], line["detail"], line["finish_reason"] or "")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text")
    if line["failure"] not in (None, *FAILURES):
        raise TypeError("failure")
    return line


_REQUIRED = ("line", "repeat", "intended", "sent", "end")
_TIMES = (
    *("intended", "sent", "end", "headers"),
    *("first_event", "first_token", "last_token", "last_event"),
)
_COUNTS = ("line", "repeat", "input_tokens", "cached_tokens", "output_tokens", "status")


def _is_number(value: object, *, whole: bool = False) -> bool:
    kinds = int if whole else int | float
    number = isinstance(value, kinds) and not isinstance(value, bool)
    return number and 0 <= value < 1e15  # type: ignore[operator]  # seconds, or tokens


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, tuple):
        return [round(gap, 6) for gap in value]
    return value
