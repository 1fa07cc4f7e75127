"""What every replica adds around its engine's application: a header and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raycluster.serve.engines import ASGI, ENGINE_HEADER, Message, Receive, Send

REPORT_PATH = "/raycluster/engine"


class Front:
    """An ASGI application that says which engine answers, and answers REPORT_PATH itself."""

    def __init__(self, app: ASGI, report: Mapping[str, Any]) -> None:
        self._app = app
        self._header = (ENGINE_HEADER, str(report["engine"]).encode())
        self._report = json.dumps(report).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._header]
            await send(message)

        if scope["method"] == "GET" and _path(scope) == REPORT_PATH:
            await respond(marked, 200, self._report)
        else:
            await self._app(scope, receive, marked)


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send a whole JSON response."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _path(scope: Message) -> str:
    """Return the path below Serve's route prefix, which Serve passes as `root_path`."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path
