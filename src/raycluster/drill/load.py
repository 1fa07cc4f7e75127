"""A bounded load of short requests, from a thread of its own, and what became of each."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from raycluster.openai_client.target import Target, tls_context

STREAM_EVERY = 5
"""Every so many requests one is a stream, for streams are what can be cut."""

RETRIED_HEADER = "x-raycluster-retried"
"""The gateway's mark on an answer that did not come from the first place it asked."""

_UNANSWERED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)


@dataclass(frozen=True)
class DrillRequest:
    """One request: when it was sent, seconds since the load began, and how it ended.

    `tried` counts the places that this client asked. `error` is empty for a whole answer.
    """

    at: float
    seconds: float
    status: int | None = None
    error: str = ""
    stream: bool = False
    truncated: bool = False
    retried: bool = False
    tried: int = 1

    @property
    def ok(self) -> bool:
        """Whether a whole answer came."""
        return not self.error

    @property
    def cut(self) -> bool:
        """Whether this was a stream that began and did not come to its end."""
        return self.stream and self.truncated


@dataclass
class SteadyLoad:
    """Sends `rate` requests a second to the first target that takes them, until it is stopped.

    A context manager. `answers` grows as requests end; at the end all have ended. `waiting` has
    when those were sent that have not.
    """

    targets: Sequence[Target]
    rate: float
    timeout: float = 60.0
    max_tokens: int = 4
    answers: list[DrillRequest] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._began = 0.0

    def __enter__(self) -> SteadyLoad:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send nothing more, and return when everything was answered or given up."""
        self._stop.set()
        self._thread.join()

    def now(self) -> float:
        """Return the seconds since the load began."""
        return time.monotonic() - self._began

    async def _run(self) -> None:
        verify = tls_context(self.targets[0])
        verify.check_hostname = False  # a forward's address is not the certificate's
        once = httpx.Limits(max_keepalive_connections=0)
        number = 0
        async with (
            httpx.AsyncClient(
                timeout=self.timeout, trust_env=False, limits=once, verify=verify
            ) as client,
            asyncio.TaskGroup() as requests,
        ):
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, number / self.rate - self.now()))
                requests.create_task(self._one(client, number))
                number += 1

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        self.waiting[number] = self.now()
        self.answers.append(await self._answer(client, number))
        del self.waiting[number]

    async def _answer(self, client: httpx.AsyncClient, number: int) -> DrillRequest:
        at, stream = self.waiting[number], number % STREAM_EVERY == STREAM_EVERY - 1
        for tried, target in enumerate(self.targets, start=1):
            try:
                status, error, retried = await self._ask(client, target, number, stream=stream)
            except _UNANSWERED as failure:
                status, error, retried = None, f"{type(failure).__name__}: {failure}", False
            except httpx.HTTPError as failure:
                status, error, retried = None, f"{type(failure).__name__}: {failure}", False
                break  # it was taken, and asking elsewhere would do the work twice
            except _CutError as cut:
                return DrillRequest(
                    at, self.now() - at, 200, str(cut), stream, truncated=True, tried=tried
                )
            else:
                break
        return DrillRequest(
            at, self.now() - at, status, error, stream, retried=retried, tried=tried
        )

    async def _ask(
        self, client: httpx.AsyncClient, target: Target, number: int, *, stream: bool
    ) -> tuple[int, str, bool]:
        body = {
            "model": target.model,
            "prompt": f"Request {number}:",
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
        }
        async with client.stream(
            "POST", target.url("/v1/completions"), json=body, headers=dict(target.headers)
        ) as answer:
            retried = RETRIED_HEADER in answer.headers
            try:
                said = await answer.aread()
            except httpx.TransportError as failure:
                raise _CutError(f"cut: {type(failure).__name__}") from failure
        if not answer.is_success:
            return answer.status_code, said.decode(errors="replace")[:300], retried
        if stream and b"data: [DONE]" not in said:
            raise _CutError("the stream ended before it was complete")
        if not stream and not _completion(said):
            return answer.status_code, "not a completion", retried
        return answer.status_code, "", retried


def _completion(said: bytes) -> bool:
    try:
        return bool(json.loads(said)["choices"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


class _CutError(Exception):
    """An answer began and did not come to its end."""
