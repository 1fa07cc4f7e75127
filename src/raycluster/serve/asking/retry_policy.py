"""What an answer means for its line: done, failed for good, or to be tried again; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from raycluster.serve.asking.result import (
    AskedLine,
    Reply,
    Result,
    UnansweredError,
    error_text,
    failure_in,
    hidden,
    printable,
    status_in,
)

AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
AWAY = frozenset({429, 502, 503, 504})
"""The endpoint as a whole does not serve at the moment; says nothing about the request."""
NO_ENTRY = frozenset({401, 403, 407})
"""No request will be served with this key."""
_MAX_WAIT = 3600.0
_SPACES = bytes.maketrans(b"\r\n", b"  ")
_BOM = b"\xef\xbb\xbf"
_NO_JSON = (b"NaN", b"Infinity")
_CONSTANTS = re.compile(rb'("(?:[^"\\]|\\.)*")|-?(?:NaN|Infinity)')


@dataclass(frozen=True)
class Retry:
    """To be tried again.

    `away`: the endpoint as a whole is not there or takes no more; `too_often`: requests came too
    fast for it.

    `wait` is what Retry-After asked for, in seconds; `reply` is the answer, if there was one.
    """

    code: str
    detail: str
    away: bool = False
    overloaded: bool = False
    too_often: bool = False
    wait: float | None = None
    reply: Reply | None = None


def decide(job: AskedLine, reply: Reply, epoch_seconds: float) -> Result | Retry:
    """Return what a whole answer means."""
    if 200 <= reply.status < 300:
        value = _object(reply.body)
        if value is None:
            text = f"the response is not a JSON object: {reply.body[:80]!r}"
            return Retry("protocol", _told(reply, text))
        failure = failure_in(value)
        if failure is None:
            body = _one_line(reply.body)
            return Result(job.line, job.custom_id, reply.status, _request_id(reply), body)
        status, code = status_in(failure) or reply.status, "error_in_answer"
        said = _told(reply, f"{reply.status}, and yet: {error_text(failure)}")
    else:
        status, code, said = reply.status, f"http_{reply.status}", _said(reply)
    if status in AGAIN:
        wait = _retry_after(reply.headers, epoch_seconds)
        return Retry(
            f"http_{status}",
            said,
            away=status in AWAY,
            overloaded=status in AWAY or status == 408,
            too_often=status == 429 and wait != 0,
            wait=wait,
            reply=reply,
        )
    return failed(job, Retry(code, said, reply=reply))


def unanswered(error: UnansweredError) -> Retry:
    """Return what a missing answer means."""
    return Retry(
        error.code,
        printable(error.detail),
        away=not error.reached,
        overloaded=error.code != "truncated",
    )


def failed(job: AskedLine, last: Retry, tries: int = 1) -> Result:
    """Return the result of a line that is not tried again."""
    message = last.detail if tries == 1 else f"{last.detail} (after {tries} attempts)"
    error = (last.code, message)
    if last.reply is None:
        return Result(job.line, job.custom_id, error=error)
    value = _object(last.reply.body)
    body = b"null" if value is None else _one_line(last.reply.body)
    return Result(job.line, job.custom_id, last.reply.status, _request_id(last.reply), body, error)


def _object(content: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None for what is none."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _one_line(content: bytes) -> bytes:
    """Return an object on one line, and as JSON: NaN and its like, which Python reads, are null."""
    content = content.removeprefix(_BOM).strip()
    content = content.translate(_SPACES)  # line ends stand between JSON's words alone
    if not any(word in content for word in _NO_JSON):
        return content
    return _CONSTANTS.sub(lambda found: found[1] or b"null", content)


def _told(reply: Reply, text: str) -> str:
    return hidden(printable(text), reply.secrets)


def _said(reply: Reply) -> str:
    try:
        said = error_text(json.loads(reply.body))
    except (ValueError, RecursionError):
        said = reply.body[:200].decode("utf-8", "replace")
    return _told(reply, f"{reply.status}: {said}")


def _request_id(reply: Reply) -> str:
    return _told(reply, reply.headers.get("x-request-id", ""))


def _retry_after(headers: Mapping[str, str], epoch_seconds: float) -> float | None:
    """Return the seconds that the server asked to wait, at most an hour; None for no wish."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if text.isdigit() else _until(text, epoch_seconds)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, seconds), _MAX_WAIT)


def _until(text: str, epoch_seconds: float) -> float:
    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - epoch_seconds
