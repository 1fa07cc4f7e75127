"""OpenAI's completions and chat completions over a `Generator`."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raycluster.serve.engines import ASGI, Count
from raycluster.serve.engines.generation import Ask, Generator, Piece
from raycluster.serve.engines.requests import Asked, BadRequestError, Reader

ERRORS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


@dataclass(frozen=True)
class Kind:
    """How the two endpoints differ in what they answer."""

    prefix: str
    whole: str
    part: str
    chat: bool

    def choice(self, text: str, finish: str | None) -> dict[str, Any]:
        """Return the choice of a whole answer."""
        body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": 0, **body, "logprobs": None, "finish_reason": finish}

    def delta(self, text: str, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        """Return the choice of one event of a stream."""
        if not self.chat:
            return self.choice(text, finish)
        delta = {"role": "assistant", "content": ""} if first else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


CHAT = Kind("chatcmpl-", "chat.completion", "chat.completion.chunk", True)
COMPLETION = Kind("cmpl-", "text_completion", "text_completion", False)


class Api:
    """The endpoints of one model; `healthy` raises when the engine is broken."""

    def __init__(
        self,
        name: str,
        generator: Generator,
        reader: Reader,
        healthy: Callable[[], None],
        count: Count,
    ) -> None:
        self._name = name
        self._generator = generator
        self._reader = reader
        self._healthy = healthy
        self._count = count
        self._created = int(time.time())

    def application(self, *aliases: str) -> ASGI:
        """Return the ASGI application of the model, which has further names."""
        self._names = (self._name, *aliases)
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: Any = {BadRequestError: _refuse, HTTPException: _http, Exception: _failed}
        app: ASGI = Starlette(routes=routes, exception_handlers=handlers)
        return app

    async def health(self, _: Request) -> Response:
        self._healthy()
        return Response()

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*map(self._card, self._names)]})

    async def model(self, request: Request) -> Response:
        self._known(request.path_params["name"])
        return JSONResponse(self._card(request.path_params["name"]))

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, COMPLETION, self._reader.completion)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, CHAT, self._reader.chat)

    async def _answer(
        self, request: Request, kind: Kind, read: Callable[[Mapping[str, Any]], Asked]
    ) -> Response:
        body = await _body(request)
        self._known(body.get("model", self._name))
        asked = read(body)
        head = {
            "id": f"{kind.prefix}{uuid.uuid4().hex}",
            "object": kind.part if asked.stream else kind.whole,
            "created": int(time.time()),
            "model": self._name,
        }
        if asked.stream:
            events = self._events(kind, head, asked)
            return StreamingResponse(events, media_type="text/event-stream")
        text, last = await _unless_gone(request, self._whole(asked.ask))
        usage = _usage(asked.ask, last.tokens)
        return JSONResponse({**head, "choices": [kind.choice(text, last.finish)], "usage": usage})

    async def _whole(self, ask: Ask) -> tuple[str, Piece]:
        text, last = "", Piece("", 0)
        try:
            async with aclosing(self._generator.stream(ask)) as pieces:  # type: ignore[type-var]
                async for last in pieces:
                    text += last.text
        finally:
            self._count(len(ask.prompt), last.tokens)
        return text, last

    async def _events(
        self, kind: Kind, head: Mapping[str, Any], asked: Asked
    ) -> AsyncIterator[bytes]:
        tokens = 0
        try:
            async with aclosing(self._generator.stream(asked.ask)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if kind.chat and not tokens:
                        yield _event({**head, "choices": [kind.delta("", None, first=True)]})
                    tokens = piece.tokens
                    choice = kind.delta(piece.text, piece.finish or None)
                    yield _event({**head, "choices": [choice]})
            if asked.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(asked.ask, tokens)})
        except Exception as error:  # the status line has gone out: the stream has to say it
            yield _event(_error(500, str(error)))
        finally:
            self._count(len(asked.ask.prompt), tokens)
        yield b"data: [DONE]\n\n"

    def _known(self, name: object) -> None:
        if name not in self._names:
            raise BadRequestError(
                f"The model `{name}` does not exist. There is: {self._name}.", "model", 404
            )

    def _card(self, name: str) -> dict[str, Any]:
        limit = self._reader.context
        card = {"id": name, "object": "model", "created": self._created}
        return {**card, "owned_by": "raycluster", "max_model_len": limit}


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    return body


async def _unless_gone(
    request: Request, work: Coroutine[Any, Any, tuple[str, Piece]]
) -> tuple[str, Piece]:
    """Await `work`, and cancel it when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client closed the request")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(ask: Ask, tokens: int) -> dict[str, int]:
    prompt = len(ask.prompt)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + tokens,
        "completion_tokens": tokens,
    }


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _error(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = ERRORS.get(status, ERRORS[400] if status < 500 else ERRORS[500])
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


async def _refuse(_: Request, error: BadRequestError) -> Response:
    return JSONResponse(_error(error.status, str(error), error.param), error.status)


async def _http(_: Request, error: HTTPException) -> Response:
    return JSONResponse(_error(error.status_code, str(error.detail)), error.status_code)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(_error(500, f"{type(error).__name__}: {error}"), 500)
