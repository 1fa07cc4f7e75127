"""Sends one request over httpx and records what happens."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable

import httpx

from raycluster.bench.answer import Answer, AnswerError
from raycluster.bench.record import Failure, Record
from raycluster.bench.schedule import Job
from raycluster.bench.sse import SseParser
from raycluster.openai_wire.said import error_text
from raycluster.openai_wire.target import Target

_CONNECT_SECONDS = 10.0
_ERROR_BODY_BYTES = 64 * 1024


def encode(job: Job, model: str, *, salt: bool) -> bytes:
    """Return a job's body as JSON that asks for a stream with usage at its end."""
    body = dict(job.prompt.body)
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    body |= {"model": model or job.prompt.model, "stream": True}
    body["stream_options"] = {**options, "include_usage": True}
    if salt and job.repeat:
        body["cache_salt"] = f"repeat-{job.repeat}"
    return json.dumps(body, separators=(",", ":")).encode()


class Sender:
    """One connection's worth of client.

    A pool shared by all requests costs CPU that grows with the requests in flight, which the
    server would be blamed for; so each slot owns one Sender.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout: float,
        salt: bool,
        verify: ssl.SSLContext,
        clock: Callable[[], float],
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._salt = salt
        self._clock = clock
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                verify=verify, trust_env=False, limits=httpx.Limits(max_connections=1)
            ),
            headers={
                **target.headers,
                "content-type": "application/json",
                "accept-encoding": "identity",  # a gateway that compresses holds tokens back
            },
            timeout=httpx.Timeout(None, connect=min(_CONNECT_SECONDS, timeout)),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def send(self, job: Job, intended: float, origin: float) -> Record:
        """Send once, never again; times in the record count from `origin` on the clock."""
        exchange = _Exchange(self._clock, origin)
        content = encode(job, self._target.model, salt=self._salt)
        url = self._target.url(job.prompt.path)
        request = self._http.build_request("POST", url, content=content)
        sent = self._clock() - origin
        failure: AnswerError | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await exchange.run(self._http, request)
        except TimeoutError:
            failure = AnswerError("timeout", f"not complete after {self._timeout:g} s")
        except AnswerError as error:
            failure = error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = AnswerError(_failure(error), f"{type(error).__name__}: {error}")
        return exchange.record(job, intended, sent, failure)


class _Exchange:
    """One request and its answer, as far as it has come."""

    def __init__(self, clock: Callable[[], float], origin: float) -> None:
        self._clock = clock
        self._origin = origin
        self._answer = Answer()
        self._headers: float | None = None
        self._status: int | None = None

    async def run(self, http: httpx.AsyncClient, request: httpx.Request) -> None:
        response = await http.send(request, stream=True)
        try:
            self._headers = self._now()
            self._status = response.status_code
            await self._check(response)
            await self._read(response)
        finally:
            await response.aclose()

    def record(self, job: Job, intended: float, sent: float, failure: AnswerError | None) -> Record:
        answer = self._answer
        return Record(
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
            finish_reason=answer.finish_reason,
            status=self._status,
            failure=failure.failure if failure else None,
            detail=failure.detail if failure else "",
        )

    async def _check(self, response: httpx.Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("text/event-stream"):
            return
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _ERROR_BODY_BYTES:
                break
        if response.status_code != 200:
            raise AnswerError("http_status", f"{response.status_code}: {_body_text(body)}")
        text = f"{kind or 'no content type'} in place of a stream: {_body_text(body)}"
        raise AnswerError("protocol", text)

    async def _read(self, response: httpx.Response) -> None:
        parser, answer = SseParser(), self._answer
        try:
            async for chunk in response.aiter_raw():
                now = self._now()
                for event in parser.feed(chunk):
                    answer.take(event, now)
        except ValueError as error:
            raise AnswerError("protocol", str(error)) from error
        except httpx.TransportError:
            if not answer.done:
                raise
        answer.done = answer.done or any(e.data == b"[DONE]" for e in parser.close())
        answer.finish()

    def _now(self) -> float:
        return self._clock() - self._origin


def _failure(error: Exception) -> Failure:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL):
        return "connect"
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.CloseError):
        return "truncated"
    # httpx has one class for an early end and for bytes that are not HTTP; only its text differs.
    early = any(words in str(error) for words in ("disconnected", "closed connection"))
    return "truncated" if early else "protocol"


def _body_text(body: bytes) -> str:
    try:
        return error_text(json.loads(body))
    except ValueError:
        return body[:200].decode("utf-8", "replace").strip()
