"""A scripted endpoint of OpenAI's APIs and Anthropic's, to test what a client makes of answers.

It runs in a thread of its own and notes when it received and sent, on `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from raycluster.openai_client.lines import MESSAGES, RESPONSES

_ENDS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    RESPONSES: lambda tokens: [
        {
            "type": "response.completed",
            "response": {
                "status": "completed",
                "error": None,
                "usage": {
                    "input_tokens": 7,
                    "output_tokens": tokens,
                    "input_tokens_details": {"cached_tokens": 4},
                },
            },
        }
    ],
    MESSAGES: lambda tokens: [
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": tokens},
        },
        {"type": "message_stop"},
    ],
}
"""What ends a stream, where it is not [DONE]."""

_REASONS = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `tokens` in events of `per_event`, each carrying `text`, `gap` seconds apart after `delay`.
    `piece` cuts what is written into so many bytes (0: an event is one write); `together` writes
    all events at once. After `stop_after` events comes `ending`: "done" is [DONE]; "none" ends the
    body properly; "error" is an error event and [DONE]; "cut" drops the connection; "hang" sends
    no more. With another `status` than 200, or another content type, `body` is the answer (half of
    it, with the ending "cut"); status 0 closes the connection without any.
    """

    tokens: int = 4
    per_event: int = 1
    text: str = "word "
    delay: float = 0.0
    gap: float = 0.0
    piece: int = 0
    together: bool = False
    line_end: bytes = b"\n"
    comments: bool = False
    role_event: bool = True
    usage: bool = True
    cached_tokens: int | None = None
    ending: str = "done"
    stop_after: int | None = None
    status: int = 200
    content_type: str = "text/event-stream"
    body: bytes = b'{"error": {"message": "scripted"}}'
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Call:
    """A request as the server saw it, with the times of what it wrote."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    received: float
    sent: list[float] = field(default_factory=list)
    """Just before each event with choices was written."""
    written: list[float] = field(default_factory=list)
    """Just after its last byte was."""
    ended: float = 0.0


@dataclass
class MockServer:
    """Answers on 127.0.0.1 while used as a context manager; `script` decides about each call."""

    script: Callable[[Call], Script]
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    max_in_flight: int = 0
    port: int = 0
    _in_flight: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _ready: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def base_url(self) -> str:
        """The address to give to a client."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def measured(self) -> list[Call]:
        """The calls that were not warm-up requests."""
        return [call for call in self.calls if "warm-up request" not in json.dumps(call.body)]

    def __enter__(self) -> MockServer:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections and listen no more; may be called twice."""
        if self._loop is not None and self._thread is not None:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._main())

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            while (call := await self._read(reader, writer)) is not None:
                self._in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self._in_flight)
                try:
                    again = await _answer(call, self.script(call), reader, writer)
                finally:
                    self._in_flight -= 1
                    call.ended = time.monotonic()
                if not again:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as clients under test do
        except asyncio.CancelledError:
            pass  # the server is closed; asyncio's streams would log a cancelled task
        finally:
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Call | None:
        """Return the next call; what is only looked at, such as /metrics, is not there."""
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"GET "):
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        path = lines[0].split(" ")[1]
        number = len(self.calls)
        call = Call(number, path, headers, json.loads(content or b"{}"), time.monotonic())
        self.calls.append(call)
        return call


async def _answer(
    call: Call, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Write the answer; return whether the connection can be used again."""
    if script.status == 0:
        return False
    await asyncio.sleep(script.delay)
    reason = _REASONS.get(script.status, "Scripted")
    head = f"HTTP/1.1 {script.status} {reason}\r\ncontent-type: {script.content_type}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in script.headers)
    if script.status != 200 or script.content_type != "text/event-stream":
        head += f"content-length: {len(script.body)}\r\n\r\n"
        cut = script.ending == "cut"
        writer.write(head.encode() + script.body[: len(script.body) // 2 if cut else None])
        await writer.drain()
        return not cut
    writer.write((head + "transfer-encoding: chunked\r\n\r\n").encode())
    await _events(call, script, writer)
    if script.ending == "hang":
        await reader.read(1)  # comes back when the client has closed
    if script.ending in {"hang", "cut"}:
        return False
    await _write(writer, _ending(call, script), script.piece)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def _events(call: Call, script: Script, writer: asyncio.StreamWriter) -> None:
    events = list(_token_events(call, script))[: script.stop_after]
    if script.together:
        call.sent += [time.monotonic()] * len(events)
        await _write(writer, b"".join(events), script.piece)
        call.written += [time.monotonic()] * len(events)
        return
    for index, event in enumerate(events):
        if index and script.gap:
            await asyncio.sleep(script.gap)
        call.sent.append(time.monotonic())
        await _write(writer, event, script.piece)
        call.written.append(time.monotonic())


def _token_events(call: Call, script: Script) -> Iterator[bytes]:
    chat = call.path.endswith("chat/completions")
    delta = {
        RESPONSES: {"type": "response.output_text.delta"},
        MESSAGES: {"type": "content_block_delta"},
    }.get(call.path)
    if call.path == RESPONSES:
        yield _event(script, {"type": "response.created", "response": {"status": "queued"}})
    if call.path == MESSAGES:
        usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 0}
        yield _event(script, {"type": "message_start", "message": {"usage": usage}})
    if chat and script.role_event:
        yield _event(script, {"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    left = script.tokens
    while left > 0:
        now = min(script.per_event, left)
        left -= now
        text = script.text * now
        said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
        finish = None if left else "stop"
        if delta is not None:
            said = {"delta": text if call.path == RESPONSES else {"text": text}}
            yield _event(script, delta | said)
            continue
        yield _event(script, {"choices": [{"index": 0, "finish_reason": finish, **said}]})


def _ending(call: Call, script: Script) -> bytes:
    last = b""
    if script.ending == "error":
        last = _event(script, {"error": {"message": "scripted failure", "code": 500}})
    elif call.path in _ENDS:
        ends = _ENDS[call.path](script.tokens) if script.ending == "done" else []
        return b"".join(_event(script, end) for end in ends)
    elif script.usage:
        usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": script.tokens}
        if script.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens}
        last = _event(script, {"choices": [], "usage": usage})
    if script.ending == "none":
        return last
    return last + b"data: [DONE]" + script.line_end * 2


def _event(script: Script, message: dict[str, Any]) -> bytes:
    comment = b": keep-alive" + script.line_end if script.comments else b""
    data = json.dumps(message, ensure_ascii=False).encode()
    return comment + b"data: " + data + script.line_end * 2


async def _write(writer: asyncio.StreamWriter, data: bytes, piece: int) -> None:
    """Write as HTTP chunks of `piece` bytes, each pushed out before the next."""
    for start in range(0, len(data), piece or len(data) or 1):
        part = data[start : start + piece] if piece else data
        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        await writer.drain()
        if piece:
            await asyncio.sleep(0)
