"""The keeper and what a replica knows of a server, with a program of a few lines as the server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raycluster.serve.engines import server as server_module
from raycluster.serve.engines.server import Place, Server, ServerEndedError
from tests.local.cluster import descendants, gone, until
from tests.ports import free_ports

PROGRAM = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


ENGINE = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"VLLM::EngineCore", 0, 0, 0)
time.sleep(600)
"""
WITH_ENGINE = PROGRAM.replace('"import time; time.sleep(600)"', repr(ENGINE))


def server(program: str = PROGRAM) -> Server:
    [port] = free_ports(1)
    argv = [sys.executable, "-c", program, str(port)]
    return Server(argv, dict(os.environ), Place("127.0.0.1", port))


async def started(kept: Server) -> list[int]:
    """Start it and return its processes: the keeper's two, the leader, the leader's child."""
    before = descendants(os.getpid())
    await kept.start()
    await kept.check()
    return [pid for pid in descendants(os.getpid()) if pid not in before]


async def is_found_killed(kept: Server) -> None:
    """Check until the server is found to have been killed."""
    with pytest.raises(ServerEndedError, match="SIGKILL"):
        while True:
            await kept.check()
            await asyncio.sleep(0.05)


def watched_by(pid: int) -> set[int]:
    """Return the processes whose end a process waits for."""
    files = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return {int(found) for text in files for found in re.findall(r"^Pid:\s*(\d+)", text, re.M)}


@pytest.mark.parametrize("victim", [None, 0, 1, 2])
def test_nothing_is_left_whoever_is_killed(victim: int | None) -> None:
    """One of the keeper's, or the leader; None: it is stopped."""

    async def run() -> list[int]:
        kept = server()
        below = await started(kept)
        assert len(below) == 4
        if victim is not None:
            os.kill(below[victim], signal.SIGKILL)
            await is_found_killed(kept)
        await kept.stop()
        return below

    below = asyncio.run(run())
    until(lambda: gone(below), seconds=30, what="something is left")


REPLICA = """
import asyncio, os, sys
sys.path[:0] = sys.argv[1:3]
import signal
from tests.unit.serve.engines.test_server import server, started
async def main():
    first, *others = await started(server())
    print(first, *others, flush=True)
    os.kill(first, signal.SIGKILL)
    os._exit(1)
asyncio.run(main())
"""


def test_nothing_is_left_when_ray_ends_a_replica_by_force() -> None:
    """It kills the replica's own children, and the replica."""
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", REPLICA, str(root / "src"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    below = [int(word) for word in done.stdout.split()]
    assert len(below) == 4, done.stderr
    until(lambda: gone(below), seconds=30, what="something is left")


def test_a_server_is_ended_with_its_engine() -> None:
    async def run() -> list[int]:
        kept = server(WITH_ENGINE)
        _, keeper, leader, engine = below = await started(kept)
        comm = Path(f"/proc/{engine}/comm")
        until(lambda: comm.read_text().startswith("VLLM"), seconds=30, what="no name")
        until(lambda: engine in watched_by(keeper), seconds=30, what="the keeper does not know it")
        os.kill(engine, signal.SIGKILL)
        until(lambda: gone([leader]), seconds=20, what="the leader is left")
        await is_found_killed(kept)
        await kept.stop()
        return below

    below = asyncio.run(run())
    until(lambda: gone(below), seconds=30, what="something is left")


def test_the_keeper_from_an_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "KEEPER", Path("/code.zip/engines/keeper.py"))

    async def run() -> list[int]:
        kept = server()
        below = await started(kept)
        await kept.stop()
        return below

    below = asyncio.run(run())
    assert len(below) == 4
    until(lambda: gone(below), seconds=30, what="something is left")


def test_why_it_did_not_start() -> None:
    async def run() -> None:
        kept = server("import sys; sys.exit('nothing to serve')")
        try:
            await kept.start()
        finally:
            await kept.stop()

    with pytest.raises(ServerEndedError) as error:
        asyncio.run(run())
    assert error.value.code == 1


def test_a_program_that_is_not_there() -> None:
    async def run() -> None:
        kept = Server(["/nowhere"], {}, Place("127.0.0.1", 1))
        try:
            await kept.start()
        finally:
            await kept.stop()

    with pytest.raises(ServerEndedError) as error:
        asyncio.run(run())
    assert error.value.code == 127
