from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, replace
from typing import Any

import pytest

from raycluster.serve.bind_addresses import Server, Servers, among, on_each


@dataclass(frozen=True)
class Options:
    """What we need of Ray's HTTPOptions."""

    host: str
    port: int = 30000

    def model_copy(self, *, update: dict[str, Any]) -> Options:
        return replace(self, **update)


class One:
    """A server that runs until it is told to end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.should_exit = False

    async def serve(self) -> str:
        while not self.should_exit:
            await asyncio.sleep(0)
        return self.address


async def start(_app: object, options: Options, **_: object) -> tuple[Any, Server]:
    if options.host == "taken":
        raise RuntimeError("the port is taken")
    server = One(options.host)
    return asyncio.ensure_future(server.serve()), server


def test_one_server_for_each_address_and_all_end_together() -> None:
    async def run() -> list[str]:
        begin = on_each(start, ("127.0.0.1", "10.0.0.2"))
        task, server = await begin("app", Options("0.0.0.0"), event_loop=None)
        assert not task.done()
        server.should_exit = True
        return list(await asyncio.wait_for(task, 30))

    assert asyncio.run(run()) == ["127.0.0.1", "10.0.0.2"]


def test_a_port_that_is_taken_on_one_address_leaves_nothing_behind() -> None:
    async def run() -> None:
        begin = on_each(start, ("127.0.0.1", "taken"))
        with pytest.raises(RuntimeError, match="the port is taken"):
            await begin("app", Options("0.0.0.0"))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_servers_ended_only_when_each_is() -> None:
    first, second = One("a"), One("b")
    both = Servers((first, second))
    first.should_exit = True
    assert not both.should_exit
    both.should_exit = True
    assert second.should_exit
    assert both.should_exit


def test_grpc_gets_a_port_that_is_free_among_its_own() -> None:
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("", 0))
            taken.listen()
        busy, free = one.getsockname()[1], other.getsockname()[1]
        other.close()
        low, high = sorted((busy, free))
        ports = range(low, high + 1, high - low)
        asked: list[str] = []

        def add(_: object, address: str) -> int:
            asked.append(address)
            return 1

        assert among(add, ports)("server", "[::]:0") == 1
        assert asked == [f"[::]:{free}"]
        assert among(add, ports)("server", "[::]:7") == 1
        assert asked[-1] == "[::]:7"
        with pytest.raises(RuntimeError, match="none of the ports"):
            among(add, range(busy, busy + 1))("server", "[::]:0")
