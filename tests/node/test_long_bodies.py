"""HAProxy itself, and clients that leave after a body which is longer than its buffer."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from pathlib import Path

import pytest

from raycluster.serve.haproxy import edited
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

CONFIG = """\
global
    tune.bufsize 65536
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 3600s
    timeout server 3600s
    option abortonclose
    option splice-request
    option splice-response
frontend http_frontend
    bind 127.0.0.1:{port}
    http-request wait-for-body time 10s if METH_POST
    default_backend http-a
backend http-a
    http-reuse always
    server ONE 127.0.0.1:{engine}
"""
BODY = b"x" * 70_000
ROUNDS, TOGETHER = 12, 16


class Silent:
    """A server that reads a request, never answers, and notes who is there."""

    def __init__(self) -> None:
        self.here = self.came = 0
        self.changed = asyncio.Condition()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length
        await reader.readexactly(int(length[1]))
        await self._now(1)
        with suppress(OSError):
            await reader.read()
        writer.close()
        await self._now(-1)

    async def _now(self, more: int) -> None:
        async with self.changed:
            self.here += more
            self.came += max(more, 0)
            self.changed.notify_all()

    async def until(self, here: int, came: int) -> None:
        """Return when so many are here, of so many that came."""
        async with self.changed, asyncio.timeout(20):
            await self.changed.wait_for(lambda: (self.here, self.came) == (here, came))


async def leave(port: int, server: Silent) -> None:
    """Have clients send their bodies in two parts each, and leave all at once, again and again."""

    async def begin() -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
        writer.write(head.encode())
        cut = random.randrange(len(BODY))
        writer.write(BODY[:cut])
        await writer.drain()
        await asyncio.sleep(random.random() / 20)
        writer.write(BODY[cut:])
        await writer.drain()
        return writer

    for number in range(1, ROUNDS + 1):
        clients = await asyncio.gather(*(begin() for _ in range(TOGETHER)))
        await server.until(here=TOGETHER, came=number * TOGETHER)
        for client in clients:
            client.close()
        await server.until(here=0, came=number * TOGETHER)


def test_who_leaves_after_a_long_body_is_seen(program: str, tmp_path: Path) -> None:
    """HAProxy 2.8 that splices requests looked no more at about one such client in twenty."""
    port, engine = free_ports(2)
    path = tmp_path / "haproxy.cfg"
    path.write_text(edited(CONFIG.format(port=port, engine=engine), {}, {}))

    async def run() -> None:
        server = Silent()
        async with await asyncio.start_server(server.take, "127.0.0.1", engine):
            haproxy = await asyncio.create_subprocess_exec(program, "-db", "-f", path)
            try:
                await up(port)
                await leave(port, server)
            finally:
                haproxy.kill()
                await haproxy.wait()

    asyncio.run(run())


async def up(port: int) -> None:
    """Return when somebody listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
