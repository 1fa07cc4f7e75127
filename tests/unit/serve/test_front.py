from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from raycluster.serve.engines import Message, Receive, Send
from raycluster.serve.front import Front, respond


async def engine(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with the path that arrived."""
    await respond(send, 200, json.dumps({"path": scope["path"]}).encode())


def asked(path: str, root_path: str = "") -> tuple[Any, dict[bytes, bytes]]:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": path, "root_path": root_path}
    asyncio.run(Front(engine, {"engine": "vllm"})(scope, receive, send))
    return json.loads(sent[1]["body"]), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("path", "root_path", "arrives"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/m/a/v1/models", "", "/v1/models"),
        ("/m/a/v1/models", "/", "/v1/models"),
        ("/m/a", "", "/m/a"),
        ("/metrics", "", "/metrics"),
        ("/m/a/v1/models", "/m/a", "/m/a/v1/models"),  # Serve's own way: the engine takes it off
    ],
)
def test_a_model_alone_answers_at_its_own_route_too(
    path: str, root_path: str, arrives: str
) -> None:
    answer, headers = asked(path, root_path)
    assert answer == {"path": arrives}
    assert headers[b"x-raycluster-engine"] == b"vllm"


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/raycluster/engine", ""),
        ("/m/a/raycluster/engine", ""),
        ("/m/a/raycluster/engine", "/m/a"),
    ],
)
def test_the_report_is_there_by_every_way(path: str, root_path: str) -> None:
    assert asked(path, root_path)[0] == {"engine": "vllm"}
