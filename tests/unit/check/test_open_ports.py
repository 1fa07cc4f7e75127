"""Which ports are tried from here: what the cluster's processes listen at, wherever that is."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

import pytest

from raycluster.check.open_ports import exposed, open_ports
from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.interfaces import Runtime
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.spec import ClusterSpec

SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h0"}, "firewall": {"check": "always"}}
)


class Held:
    """A runtime whose processes hold these sockets, or that cannot tell."""

    def __init__(self, *inodes: int) -> None:
        self.inodes = inodes

    def sockets(self) -> frozenset[int]:
        if not self.inodes:
            raise HostError("Docker does not respond", where="head")
        return frozenset(self.inodes)


class OneHost:
    """A fleet of this machine."""

    def __init__(self, connected: Connected) -> None:
        self.connected = connected

    def each(self, names: Any, work: Any) -> dict[str, Any]:
        [name] = names
        try:
            return {name: work(self.connected)}
        except RayclusterError as error:
            return {name: error}

    def __getitem__(self, name: str) -> Connected:
        return self.connected


def connected(runtime: Held) -> Connected:
    return Connected(SPEC.hosts[0], LocalTransport("head"), cast("Runtime", runtime))


def inode(listening: socket.socket) -> int:
    return os.fstat(listening.fileno()).st_ino


def test_a_port_that_no_spec_names_is_found_by_who_has_it() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as engine,
        socket.create_server(("0.0.0.0", 0)) as another,
        socket.create_server(("127.0.0.1", 0)) as inside,
    ):
        # other programs may have ports of the spec
        before = open_ports(SPEC, connected(Held(inode(inside))))
        found = open_ports(SPEC, connected(Held(inode(engine), inode(inside))))
        expected = {each.port for each in before} | {engine.getsockname()[1]}
        assert sorted(each.port for each in found) == sorted(expected)
        assert inode(another) not in {inode(engine), inode(inside)}


def test_what_cannot_be_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycluster.check.open_ports.unguarded", lambda *_: False)
    [error] = exposed(SPEC, cast("Fleet", OneHost(connected(Held()))))
    assert "could not check which ports are reachable from outside: Docker does not respond" in str(
        error
    )
    assert error.exit_code == 3
