"""Whether a replica can answer now: a request for one token, through the engine's application."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raycluster.serve.engines import ASGI, Message

PATIENCE_S = 10.0
GENERATES = "/v1/completions"
GOOD_FOR_S = 2.0

Question = tuple[str, Mapping[str, Any]]


def questions(model: str) -> tuple[Question, ...]:
    """Return paths and bodies of the smallest requests, of which a model answers one at least."""
    return (
        (GENERATES, {"model": model, "prompt": "a", "max_tokens": 1}),
        ("/v1/embeddings", {"model": model, "input": "a"}),
        ("/classify", {"model": model, "input": "a"}),
        ("/pooling", {"model": model, "input": "a"}),
    )


class Readiness:
    """Asks the application; callers at the same time share one request, a good answer lasts 2 s.

    Of the questions the first counts whose path is there. `generated` is called for each token
    that this costs.
    """

    def __init__(
        self,
        app: ASGI,
        asked: Sequence[Question],
        clock: Callable[[], float] = time.monotonic,
        *,
        generated: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._asked = list(asked)
        self._clock = clock
        self._generated = generated
        self._good_until = -1.0
        self._asking: asyncio.Task[str] | None = None

    async def problem(self) -> str:
        """Return why the replica is not ready, or ""."""
        if self._clock() < self._good_until:
            return ""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str:
        try:
            status, body = await asyncio.wait_for(self._answer(), PATIENCE_S)
        except TimeoutError:
            return f"no token came within {PATIENCE_S:.0f} s"
        except Exception as error:  # whatever the application raises means that it cannot answer
            return f"{type(error).__name__}: {error}"
        if status != 200:
            return f"answered {status}: {body[:300].decode('utf-8', 'replace')}"
        self._good_until = self._clock() + GOOD_FOR_S
        if self._asked[0][0] == GENERATES:
            self._generated()
        return ""

    async def _answer(self) -> tuple[int, bytes]:
        """Ask, and leave out from then on what the model has no path for."""
        status, body = await call(self._app, *self._asked[0])
        while status == 404 and len(self._asked) > 1:
            del self._asked[0]
            status, body = await call(self._app, *self._asked[0])
        return status, body


async def call(app: ASGI, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
    """POST to an ASGI application in this process, or GET; return the status and the body."""
    sent = json.dumps(body).encode() if body is not None else b""
    requests: list[Message] = [{"type": "http.request", "body": sent, "more_body": False}]
    answers: list[Message] = []

    async def receive() -> Message:
        return requests.pop() if requests else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Message) -> None:
        answers.append(message)

    await app(_scope("GET" if body is None else "POST", path, len(sent)), receive, send)
    status = next(int(m["status"]) for m in answers if m["type"] == "http.response.start")
    return status, b"".join(m.get("body", b"") for m in answers)


def _scope(method: str, path: str, length: int) -> Message:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method},
        **{"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b""},
        **{"root_path": "", "headers": [(b"host", b"replica"), *headers]},
        **{"client": ("127.0.0.1", 0), "server": ("replica", 80)},
    }
