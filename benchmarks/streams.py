"""An endpoint that streams answers of known shape, cheaper than any client: a program.

    python -m benchmarks.streams EVENTS GAP_SECONDS FIRST_SECONDS [PROCESSES]

Prints its port, which its processes share. Every POST gets a chat's stream of EVENTS events, each
in a packet of its own: the first after FIRST, the others after a GAP. Ends with standard input.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from raycluster.bench.capacity import Canned, canned


class Paced(Canned):
    """Leaves a gap before each event; answers GET, for clients that look before they send."""

    def __init__(self, answer: list[bytes], gap: float, first: float) -> None:
        super().__init__(answer)
        self._gap = gap
        self._first = first
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        """Answer when the whole request is there."""
        if data.startswith(b"GET"):
            data = data.replace(b"\r\n\r\n", b"\r\ncontent-length: 0\r\n\r\n")
        super().data_received(data)

    def reply(self, transport: asyncio.Transport, packets: Sequence[bytes]) -> None:
        """Send an answer over time."""
        task = asyncio.get_running_loop().create_task(self._send(transport, packets))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, transport: asyncio.Transport, packets: Sequence[bytes]) -> None:
        head, *events, end = packets
        transport.write(head)
        for number, event in enumerate(events):
            await asyncio.sleep(self._gap if number else self._first)
            transport.write(event)
        transport.write(end)


async def serve(events: int, gap: float, first: float, port: int) -> None:
    """Listen until standard input ends."""
    loop = asyncio.get_running_loop()
    answer = canned(events)
    server = await loop.create_server(
        lambda: Paced(answer, gap, first), "127.0.0.1", port, backlog=4096, reuse_port=True
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main(events: str, gap: str, first: str, processes: str = "1", port: str = "") -> None:
    """Start the other processes, if any, and serve."""
    with ExitStack() as stack:
        if not port:
            held = stack.enter_context(socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            port = str(held.getsockname()[1])
        for _ in range(int(processes) - 1):
            words = [events, gap, first, "1", port]
            command = [sys.executable, "-m", "benchmarks.streams", *words]
            other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(other)
            assert other.stdout is not None
            other.stdout.readline()
        asyncio.run(serve(int(events), float(gap), float(first), int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
