"""Where a replica's own HTTP listens: loopback and the node's address among its cluster.

Serve lets it listen where its HTTP port does, and HAProxy needs it on both: it asks the replicas of
its own node on loopback and those of other nodes at their addresses. All interfaces, Serve's way
around that, would let in everybody who reaches the host.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from raycluster.serve.node_files import members, own_address

GRPC_PORTS = "RAYCLUSTER_GRPC_PORTS"
"""The variable that holds the ports for the replicas' gRPC, as FIRST-LAST."""

PRIVATE = {
    "add_port_to_grpc_server": "ray.serve._private.replica",
    "get_localhost_ip": "ray._common.network_utils",
    "start_asgi_http_server": "ray.serve._private.replica",
}
"""Names of Ray that we use and the module that has, or calls, each; seen in Ray 2.60.0."""

Options = Any
"""ray.serve.config.HTTPOptions."""


class Server(Protocol):
    """What Serve needs of uvicorn's server: setting `should_exit` ends it gracefully."""

    should_exit: bool


AddPort = Callable[[Any, str], int]
Start = Callable[..., Awaitable[tuple["asyncio.Future[Any]", Server]]]


@dataclass
class Servers:
    """Several servers that end together."""

    each: tuple[Server, ...]

    @property
    def should_exit(self) -> bool:
        """True when all were told to end."""
        return all(server.should_exit for server in self.each)

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        for server in self.each:
            server.should_exit = value


def listen_privately(node: str, beside: int = 0) -> Listening:
    """Make this process's replica listen on loopback and `node`, its node's address among others.

    On a cluster's only node loopback is enough. To be called before Serve starts the replica's
    HTTP, which is after its constructor. Returns what tells the port then. With `beside` it is one
    for which nobody listens so far above it either, at the address that HAProxies use.
    """
    loopback = str(_upstream("get_localhost_ip")())
    addresses = (loopback,) if node == loopback or members() == 1 else (loopback, node)
    listening = Listening(own_address() or loopback, beside)
    _replace("start_asgi_http_server", lambda start: on_each(start, addresses, listening))
    if ports := os.environ.get(GRPC_PORTS, ""):
        first, last = map(int, ports.split("-"))
        _replace("add_port_to_grpc_server", lambda add: among(add, range(first, last + 1)))
    return listening


def among(add: AddPort, ports: range) -> AddPort:
    """Return what gives gRPC a free port of `ports` where `add` would take any free one."""

    def added(server: object, address: str) -> int:
        host, _, port = address.rpartition(":")
        if port != "0":
            return add(server, address)
        for wanted in random.sample(ports, len(ports)):
            # gRPC shares a port that another server has, without an error.
            if _free(wanted):
                return add(server, f"{host}:{wanted}")
        raise RuntimeError(f"none of the ports {ports[0]} to {ports[-1]} is free")

    return added


@dataclass
class Listening:
    """Where a replica came to listen: `port` is 0 before. `beside` is the distance to another."""

    address: str
    beside: int
    port: int = 0

    def take(self, port: int) -> None:
        """Note the port; raises RuntimeError when the one beside it is taken."""
        if self.beside:
            with socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.address, port + self.beside))
                except OSError as error:
                    raise RuntimeError(f"port {port + self.beside} is taken") from error
        self.port = port


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def on_each(start: Start, addresses: tuple[str, ...], listening: Listening | None = None) -> Start:
    """Return what starts one server for each address where `start` starts one for the options."""

    async def started(
        app: object, options: Options, **more: object
    ) -> tuple[asyncio.Future[Any], Server]:
        made: list[tuple[asyncio.Future[Any], Server]] = []
        try:
            if listening is not None:
                listening.take(options.port)
            for address in addresses:
                there = options.model_copy(update={"host": address})
                made.append(await start(app, there, **more))
        except RuntimeError:  # the port is taken on one of them: Serve tries another
            for task, _ in made:
                task.cancel()
            raise
        tasks, servers = zip(*made, strict=True)
        return asyncio.gather(*tasks), Servers(servers)

    return started


def _replace(name: str, wrapped: Callable[[Any], Any]) -> None:
    setattr(import_module(PRIVATE[name]), name, wrapped(_upstream(name)))


def _upstream(name: str) -> Any:  # noqa: ANN401  # whatever Ray has there
    return getattr(import_module(PRIVATE[name]), name)
