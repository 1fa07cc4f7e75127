"""OpenAI's completions and chat completions over a `Generator`."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raycluster.serve.engines import ASGI, Count
from raycluster.serve.engines.generation import Ask, Generator, Piece
from raycluster.serve.engines.requests import Asked, BadRequestError, Reader

Result = TypeVar("Result")

READERS = 2
"""Requests that are read and turned into tokens at a time."""

GONE = "the client closed the request"
ERRORS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


@dataclass(frozen=True)
class Kind:
    """How the two endpoints differ in what they answer."""

    prefix: str
    whole: str
    part: str
    chat: bool

    def choice(self, index: int, text: str, last: Piece) -> dict[str, Any]:
        """Return a choice of a whole answer."""
        body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **body, **_end(last)}

    def first(self, index: int) -> dict[str, Any]:
        """Return the choice of the event that begins a stream."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, **_end(Piece("", 0))}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the choice of one event of a stream."""
        if not self.chat:
            return self.choice(index, piece.text, piece)
        return {"index": index, "delta": {"content": piece.text}, **_end(piece)}


def _end(piece: Piece) -> dict[str, Any]:
    return {
        **{"logprobs": None, "finish_reason": piece.finish or None},
        "stop_reason": piece.reason,
    }


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
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="read")
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
        self, request: Request, kind: Kind, read: Callable[[bytes], Asked]
    ) -> Response:
        body = await _body(request, self._reader.largest_body)
        if body is None:
            raise BadRequestError(
                f"the request has more than {self._reader.largest_body} bytes, which is more than"
                f" the {self._reader.context} tokens of this model's context can be"
            )
        asked = await asyncio.get_running_loop().run_in_executor(self._reading, read, body)
        self._known(asked.model or self._name)
        head = {
            "id": f"{kind.prefix}{asked.request_id or uuid.uuid4().hex}",
            "object": kind.part if asked.stream else kind.whole,
            "created": int(time.time()),
            "model": self._name,
        }
        if asked.stream:
            events = self._events(kind, head, asked)
            return StreamingResponse(events, media_type="text/event-stream")
        choices, tokens = await _unless_gone(request, self._whole(kind, asked))
        return JSONResponse({**head, "choices": choices, "usage": _usage(asked, tokens)})

    async def _whole(self, kind: Kind, asked: Asked) -> tuple[list[dict[str, Any]], int]:
        texts = [""] * len(asked.asks)
        last = [Piece("", 0)] * len(asked.asks)
        async with aclosing(self._pieces(asked)) as pieces:
            async for index, piece in pieces:
                texts[index] += piece.text
                last[index] = piece
        choices = [
            kind.choice(index, text, piece)
            for index, (text, piece) in enumerate(zip(texts, last, strict=True))
        ]
        return choices, sum(piece.tokens for piece in last)

    async def _pieces(self, asked: Asked) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of all choices with their choice's index, and count them at the end."""
        made = [0] * len(asked.asks)
        queue = asyncio.Queue[tuple[int, Piece | Exception | None]]()

        async def follow(index: int, ask: Ask) -> None:
            try:
                async with aclosing(self._generator.stream(ask)) as pieces:
                    async for piece in pieces:
                        queue.put_nowait((index, piece))
                queue.put_nowait((index, None))
            except Exception as error:
                queue.put_nowait((index, error))

        tasks = [asyncio.ensure_future(follow(*each)) for each in enumerate(asked.asks)]
        try:
            left = len(tasks)
            while left:
                index, piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    left -= 1
                    continue
                made[index] = piece.tokens
                yield index, piece
        finally:
            for task in tasks:
                task.cancel()
            self._count(asked.prompt_tokens, sum(made))

    async def _events(
        self, kind: Kind, head: Mapping[str, Any], asked: Asked
    ) -> AsyncIterator[bytes]:
        made = [0] * len(asked.asks)
        try:
            async with aclosing(self._pieces(asked)) as pieces:
                async for index, piece in pieces:
                    if kind.chat and not made[index]:
                        yield _event({**head, "choices": [kind.first(index)]})
                    made[index] = piece.tokens
                    told = {**head, "choices": [kind.delta(index, piece)]}
                    if asked.continuous_usage:
                        told["usage"] = _usage(asked, sum(made))
                    yield _event(told)
            if asked.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(asked, sum(made))})
        except Exception as error:  # the status line has gone out: the stream has to say it
            yield _event(_error(500, str(error)))
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


async def _body(request: Request, most: int) -> bytes | None:
    """Return the body, or None where it is larger; what is too much is read and not kept."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            parts.append(part) if size <= most else parts.clear()
    except ClientDisconnect:
        raise HTTPException(499, GONE) from None
    return b"".join(parts) if size <= most else None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, and cancel it when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, GONE)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(asked: Asked, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "total_tokens": asked.prompt_tokens + tokens,
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
