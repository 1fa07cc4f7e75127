"""How much load this client can make at all: the same shape against an endpoint that costs nothing.

The endpoint runs in a process of its own and streams canned bytes, each event in a packet of its
own, as a fast server would.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

from raycluster.bench.loops import run_loop
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.senders import InProcess, MultiProcess
from raycluster.bench.stats import Measures
from raycluster.bench.worker import Plan
from raycluster.openai_client.lines import CHAT
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target

SECONDS = 1.0
SLOTS = 32

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def requests_per_second(measures: Measures, processes: int) -> float:
    """Return how many answers per second the client could take, of as many events as it took.

    It uses a second of the machine, beside whatever else runs there.
    """
    events = max(1, round(_events_per_answer(measures)))
    prompts = [Prompt("calibration", 1, CHAT, {"messages": []})]
    load = Load((Closed(max(SLOTS, processes)),), duration=SECONDS, warmup=processes)
    with _endpoint(events) as url:
        records = run_loop(_send(prompts, Target(url, "calibration"), load, processes))
    elapsed = max(record.end for record in records) - min(record.sent for record in records)
    return len(records) / elapsed


def _events_per_answer(measures: Measures) -> float:
    gaps = measures.event_gap_ms.count if measures.event_gap_ms else 0
    return 1 + gaps / measures.completed


async def _send(
    prompts: list[Prompt], target: Target, load: Load, processes: int
) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    plan = Plan(load.shapes[0], range(2**62))

    async def send(senders: InProcess | MultiProcess) -> None:
        await senders.level(
            plan, warmed=lambda _: None, began=lambda _: None, done=records.append, efforts=[]
        )

    if processes == 1:
        await send(InProcess(prompts, target, load))
    else:
        with MultiProcess(prompts, target, load, processes) as senders:
            await send(senders)
    return records


@contextmanager
def _endpoint(events: int) -> Iterator[str]:
    """Run the endpoint in a process of its own; yield its address."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, events), daemon=True)
    process.start()
    theirs.close()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        ours.close()
        process.join(2.0)
        process.kill()


def _serve(pipe: Connection, events: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run_loop(_listen(pipe, canned(events)))


async def _listen(pipe: Connection, answer: list[bytes]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Canned(answer), "127.0.0.1", 0, backlog=1024)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.poll, None)  # until the other end is closed
    server.close()


def canned(events: int) -> list[bytes]:
    """Return the packets of an answer: its head, its events, and its end."""
    token = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
    usage = {"prompt_tokens": 1, "total_tokens": 1 + events, "completion_tokens": events}
    end = _chunk({"choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    return [_HEAD, *[_chunk({"choices": [token]})] * events, end]


def _chunk(said: dict[str, object]) -> bytes:
    made = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    data = f"data: {json.dumps(made | said)}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Canned(asyncio.Protocol):
    """Answers whatever was posted, when its last byte is there."""

    def __init__(self, answer: list[bytes]) -> None:
        self._answer = answer
        self._head = b""
        self._left: int | None = None  # bytes of the body that are still to come
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP connection's is one

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            self._head, mark, data = (self._head + data).partition(b"\r\n\r\n")
            if not mark:
                return
            _, _, rest = self._head.lower().partition(b"content-length:")
            self._left = int(rest.split(b"\r\n", 1)[0]) if rest else 0
        self._left -= len(data)
        if self._left <= 0 and self._transport is not None:
            self._head, self._left = b"", None
            self.reply(self._transport, self._answer)

    def reply(self, transport: asyncio.Transport, packets: Sequence[bytes]) -> None:
        """Send an answer."""
        for packet in packets:
            transport.write(packet)
