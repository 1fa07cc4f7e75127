"""A bare endpoint that streams answers of known shape, cheaper than any client: a program.

    python -m benchmarks.streams TOKENS GAP_SECONDS

Prints its port. Every POST gets a chat's stream of TOKENS events, each in a packet of its own, GAP
apart, then usage and [DONE]. Knows as much of HTTP as its clients need. Ends with standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
IDENTITY = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
PROMPT_TOKENS = 7


def event(choices: list[object], **more: object) -> bytes:
    """Return one event as a chunk of HTTP."""
    text = json.dumps({**IDENTITY, "choices": choices, **more}, separators=(",", ":"))
    data = f"data: {text}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def token(finish: str | None = None) -> bytes:
    """Return the event of one token."""
    delta = {"content": " word"}
    return event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])


def ending(tokens: int) -> bytes:
    """Return the end of a stream."""
    total = PROMPT_TOKENS + tokens
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": total, "completion_tokens": tokens}
    return event([], usage=usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection; requests come one after the other."""

    def __init__(self, tokens: int, gap: float) -> None:
        self._parts = [HEAD, *[token()] * (tokens - 1), token("stop"), ending(tokens)]
        self._gap = gap
        self._got = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the whole request is there."""
        self._got += data
        head, mark, body = self._got.partition(b"\r\n\r\n")
        if not mark:
            return
        if head.startswith(b"GET"):
            self._got = b""
            models = json.dumps({"object": "list", "data": [{"id": "tiny"}]}).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(models)}\r\n\r\n".encode()
                + models
            )
            return
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        if len(body) >= length:
            self._got = b""
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        for part in self._parts:
            self._transport.write(part)
            await asyncio.sleep(self._gap if part is not HEAD else 0)


async def serve(tokens: int, gap: float) -> None:
    """Listen until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(tokens, gap), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
