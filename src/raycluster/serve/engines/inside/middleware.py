"""What vLLM's server takes as a middleware."""

from __future__ import annotations

import os
from contextlib import suppress

from raycluster.serve.engines.inside.guard import ASGI, Guard, Message, Receive, Rewritten, Send
from raycluster.serve.engines.inside.key import NOBODY, asked_by
from raycluster.serve.engines.inside.quotas import quotas
from raycluster.serve.engines.inside.tool_parsers import without_flags
from raycluster.serve.engines.inside.usage import usage
from raycluster.serve.engines.inside.vllm_hooks import count_in_vllm, let_go_in_vllm

QUOTAS_PATH = "/raycluster/quotas"
"""Where the replica tells what keys have used elsewhere, and learns what they have used here."""

MODEL = "RAYCLUSTER_MODEL"
"""The variable that tells vLLM's server the name of its model in the spec."""


class Middleware:
    """A guard of one model, which mends what vLLM says of its command line."""

    def __init__(self, app: ASGI) -> None:
        self._app = app
        self._model = os.environ.get(MODEL, "")
        self._guard = Guard(self._answer, self._model)
        count_in_vllm(self._model, usage())
        let_go_in_vllm()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if str(scope.get("path", "")).endswith(QUOTAS_PATH) and scope.get("method") == "POST":
            await _exchange(scope, receive, send)
        else:
            await self._guard(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        mended = Rewritten(send, lambda x: without_flags(x, scope, self._model), statuses=(400,))
        await self._app(scope, receive, mended)


async def _exchange(scope: Message, receive: Receive, send: Send) -> None:
    """Answer the replica; who comes by the gateway has an owner."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    status, said = 404, b"{}"
    with suppress(ValueError):
        if asked_by(scope["headers"])[0] == NOBODY:
            status, said = 200, quotas().exchange(body)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said})
