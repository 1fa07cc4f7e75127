"""Sends one request and records what happens."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from raycluster.bench.answer import IncompleteAnswerError, SseParser, StreamedAnswer
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import BenchRequest
from raycluster.openai_client.lines import CHAT, COMPLETIONS, GENERATING
from raycluster.openai_client.target import Target
from raycluster.openai_client.wire import (
    CONNECT_SECONDS,
    BadHttpError,
    ConnectError,
    EarlyEndError,
    HttpWire,
)
from raycluster.serve.asking.result import CodingError, Unpacker, error_text, failure_in, hidden
from raycluster.serve.asking.sender import SHARED, Room, RoomError

_ERROR_BODY_BYTES = 64 * 1024
_WHOLE_BODY_BYTES = 64 * 1024 * 1024
_EVENT_BYTES = 64
"""What is kept of an event, about: the gap before it."""

P = ParamSpec("P")
T = TypeVar("T")


def encode(job: BenchRequest, model: str, *, salt: bool) -> bytes:
    """Return a job's body as JSON that asks for a stream with usage, where there are streams."""
    body = dict(job.prompt.body) | {"model": model or job.prompt.model}
    path = job.prompt.path
    if path in GENERATING:
        body["stream"] = True
    if path in {CHAT, COMPLETIONS}:  # the others always tell their usage
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        body["stream_options"] = {**options, "include_usage": True}
    if salt and job.repeat and path in GENERATING:
        body["cache_salt"] = f"repeat-{job.repeat}"
    return json.dumps(body, separators=(",", ":")).encode()


class Sender:
    """One connection's worth of client; each slot of the load owns one."""

    def __init__(
        self,
        target: Target,
        *,
        timeout: float,
        salt: bool,
        verify: ssl.SSLContext,
        clock: Callable[[], float],
        room: Room = SHARED,
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._salt = salt
        self._clock = clock
        self._wire = HttpWire(target, verify)
        self._room = room

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    async def send(self, job: BenchRequest, intended: float, origin: float) -> RequestRecord:
        """Send once, never again; times in the record count from `origin` on the clock."""
        streams = job.prompt.path in GENERATING
        exchange = _Exchange(self._clock, origin, self._room, streams=streams)
        content = encode(job, self._target.model, salt=self._salt)
        sent = self._clock() - origin
        failure: IncompleteAnswerError | None = None
        connect = min(CONNECT_SECONDS, self._timeout)
        try:
            async with asyncio.timeout(self._timeout):
                await self._wire.post(job.prompt.path, content, exchange, connect=connect)
            exchange.finish()
        except TimeoutError:
            failure = IncompleteAnswerError("timeout", f"not complete after {self._timeout:g} s")
        except IncompleteAnswerError as error:
            failure = error
        except ConnectError as error:
            failure = IncompleteAnswerError("connect", str(error))
        except EarlyEndError as error:
            failure = (
                None if exchange.complete() else IncompleteAnswerError("truncated", str(error))
            )
        except BadHttpError as error:
            failure = IncompleteAnswerError("protocol", str(error))
        finally:
            exchange.forget()
        return exchange.record(job, intended, sent, failure, self._wire.secrets)


class _Exchange:
    """One answer, as far as it has come."""

    def __init__(
        self, clock: Callable[[], float], origin: float, room: Room, *, streams: bool
    ) -> None:
        self._room = room
        self._held = 0
        self._clock = clock
        self._origin = origin
        self._answer = StreamedAnswer()
        self._parser = SseParser()
        self._headers: float | None = None
        self._status: int | None = None
        self._kind = ""
        self._streams = streams
        self._unpacker = Unpacker("")
        self._whole: bytearray | None = None
        """An answer that is no stream, or what stands in the place of one."""

    def begun(self, status: int, headers: Mapping[str, str]) -> None:
        self._headers = self._now()
        self._status = status
        self._kind = headers.get("content-type", "")
        self._unpacker = _reading(Unpacker, headers.get("content-encoding", ""))
        stream = self._kind.strip().lower().startswith("text/event-stream")
        if status != 200 or not self._streams or not stream:
            self._whole = bytearray()

    def data(self, chunk: bytes) -> None:
        chunk = _reading(self._unpacker.feed, chunk)
        if self._whole is not None:
            self._whole += chunk
            good = self._status == 200 and not self._streams
            self._hold(len(self._whole))
            if len(self._whole) > (_WHOLE_BODY_BYTES if good else _ERROR_BODY_BYTES):
                raise self._refused()
            return
        now = self._now()
        try:
            for event in self._parser.feed(chunk):
                self._answer.take(event, now)
        except ValueError as error:
            raise IncompleteAnswerError("protocol", str(error)) from error
        self._hold(self._parser.held + _EVENT_BYTES * len(self._answer.gaps))

    def _hold(self, size: int) -> None:
        """Note how much of the answer is in memory; raises AnswerError where that is too much."""
        more, self._held = size - self._held, size
        try:
            self._room.take(more)
        except RoomError as error:
            raise IncompleteAnswerError("protocol", str(error)) from error

    def forget(self) -> None:
        """Hold nothing any more."""
        self._room.give(self._held)
        self._held = 0

    def finish(self) -> None:
        """Check that the answer is complete, at its end; raises AnswerError."""
        _reading(self._unpacker.close)
        if self._whole is not None:
            if self._status != 200 or self._streams:
                raise self._refused()
            self._answer.take_whole(bytes(self._whole), self._now())
            return
        for event in self._parser.close():
            self._answer.done = self._answer.done or event.data == b"[DONE]"
        self._answer.finish()

    def complete(self) -> bool:
        """Return whether nothing of the answer is missing but the end of its connection."""
        try:
            self.finish()
        except IncompleteAnswerError:
            return False
        return True

    def record(
        self,
        job: BenchRequest,
        intended: float,
        sent: float,
        failure: IncompleteAnswerError | None,
        secrets: Sequence[str],
    ) -> RequestRecord:
        """Return what is kept of it, without the secrets that the server may have said back."""
        answer = self._answer
        return RequestRecord(
            id=job.prompt.id,
            line=job.prompt.line,
            repeat=job.repeat,
            intended=intended,
            sent=sent,
            end=self._now(),
            headers=self._headers,
            first_event=answer.first_event,
            first_token=answer.first_token,
            last_token=answer.last_token,
            last_event=answer.last_event,
            gaps=tuple(answer.gaps),
            input_tokens=answer.input_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=hidden(answer.finish_reason, secrets) if answer.finish_reason else None,
            status=self._status,
            failure=failure.failure if failure else None,
            detail=hidden(failure.detail, secrets) if failure else "",
        )

    def _refused(self) -> IncompleteAnswerError:
        body = bytes(self._whole or b"")[:_ERROR_BODY_BYTES]
        text = _body_text(body)
        if self._status != 200:
            return IncompleteAnswerError("http_status", f"{self._status}: {text}")
        if _is_error(body):
            return IncompleteAnswerError("stream_error", text)
        wanted = "a stream" if self._streams else "an answer of at most 64 MiB"
        return IncompleteAnswerError(
            "protocol", f"{self._kind or 'no content type'} in place of {wanted}: {text}"
        )

    def _now(self) -> float:
        return self._clock() - self._origin


def _reading(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return step(*args, **kwargs)
    except CodingError as error:
        raise IncompleteAnswerError("protocol", str(error)) from error


def _body_text(body: bytes) -> str:
    try:
        return error_text(json.loads(body))
    except (ValueError, RecursionError):
        return body[:200].decode("utf-8", "replace").strip()


def _is_error(body: bytes) -> bool:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and failure_in(said) is not None
