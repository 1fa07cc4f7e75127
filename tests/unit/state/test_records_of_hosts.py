"""Which of the hosts' records is believed, and who is drained on the word of one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest

import raycluster.apply.context
from raycluster.apply.context import ApplyContext
from raycluster.apply.host_removal import drain
from raycluster.core.errors import HostError, NewerRecordError, RecordError
from raycluster.core.interfaces import Completed, Found, Secret
from raycluster.hosts.fleet import Fleet
from raycluster.observe.cluster import _with_records
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.members import former, read_members

SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "h0"},
        "workers": [{"host": "h1", "name": "a"}, {"host": "h2", "name": "b"}],
    }
)
T1, T2 = b"1" * 64, b"2" * 64
GONE = b'{"schema": 1, "members": [{"name": "gone", "host": "h9", "kind": "docker"}]}'


@dataclass
class Stored:
    """A host that stores this, or cannot be asked."""

    content: bytes | None

    runtime = host = property(lambda self: self)
    address = "10.0.0.9"

    def inside(self, _: str) -> Stored:
        return self

    def run(self, *_: object, **__: object) -> Completed:
        if self.content is None:
            raise HostError("it stopped")
        return Completed(0, self.content)


class Hosts(dict[str, Stored]):
    """A fleet of them."""

    def reach(self, hosts: Iterable[Any], then: Callable[[Any], Any]) -> dict[str, Any]:
        return {host.name: then(Stored(b"")) for host in hosts}


def believed(*stored: bytes | None) -> ClusterState:
    running = {
        h.name: HostState(h.name, f"10.0.0.{i}", (Found(h.role, "f", "running"),))
        for i, h in enumerate(SPEC.hosts)
    }
    hosts = Hosts(zip(running, map(Stored, stored), strict=True))
    return _with_records(SPEC, cast("Fleet", hosts), ClusterState(running))


@pytest.mark.parametrize(
    ("stored", "token", "members", "unread"),
    [
        ((T1 + b"\n" + GONE, None, None), T1, 1, None),
        ((None, T1 + b"\n" + GONE, None), T1, 1, None),
        ((b"", T1 + b"\n" + GONE, None), T1, 1, None),
        ((T1 + b"\n[", T1 + b"\n" + GONE, None), T1, 1, None),
        ((T1 + b"\n[", T2 + b"\n" + GONE, T1 + b"\n" + GONE), T1, 1, None),
        ((T1 + b"\n[", T2 + b"\n" + GONE, None), T1, 0, RecordError),
        ((b"\x1b]0;x\n" + GONE, T1 + b"\n" + GONE, None), T1, 1, None),
        ((b"\x1b]0;x\n" + GONE, None, None), None, 0, RecordError),
        ((T1 + b'\n{"schema": 2}', T1 + b"\n" + GONE, None), T1, 1, None),
        ((T1 + b'\n{"schema": 2}', T1 + b"\n[", None), T1, 0, NewerRecordError),
        ((None, None, None), None, 0, None),
    ],
)
def test_the_first_that_can_be_read_is_believed_and_members_come_with_the_token(
    stored: tuple[bytes | None, ...],
    token: bytes | None,
    members: int,
    unread: type[RecordError] | None,
) -> None:
    state = believed(*stored)
    assert state.token == (Secret(token.decode()) if token else None)
    assert len(state.members) == members
    assert (type(state.unread) if state.unread else None) is unread


def test_the_token_alone_is_no_record_of_members() -> None:
    assert believed(T1 + b"\n", None, None).unread


class Api:
    """Ray with a node at each of two addresses."""

    def nodes(self) -> list[Any]:
        return [Node("1", "10.0.0.1"), Node("9", "10.0.0.9")]

    def apps(self) -> list[Any]:
        return []


@dataclass
class Node:
    node_id: str
    address: str
    alive: bool = True


def test_a_host_that_stays_is_not_drained_whatever_address_one_that_left_is_said_to_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Mapping[str, Any]] = [
        {"name": n, "host": n, "kind": "docker", "private_address": address}
        for n, address in (("x", "10.0.0.1"), ("y", "10.0.0.9"))
    ]
    record = json.dumps({"schema": 1, "members": told}).encode()
    left = former(SPEC, read_members(record, "head"))

    class Fleets(Hosts):
        def check(self) -> None:
            """Nobody else has the lock."""

        def reach(self, hosts: Iterable[Any], then: Callable[[Any], Any]) -> dict[str, Any]:
            del then
            return {host.name: host.private_address for host in hosts}

    ran: list[str] = []
    head = Stored(b"")
    monkeypatch.setattr(Stored, "transport", None, raising=False)

    def run(argv: tuple[str, ...], **_: object) -> Completed:
        ran.append(argv[2])
        return Completed(0)

    monkeypatch.setattr(head, "run", run)
    opened = contextlib.nullcontext(Api())
    monkeypatch.setattr(raycluster.apply.context, "open_ray_api", lambda *_: opened)
    fleet = cast("Fleet", Fleets({"head": head}))
    work = ApplyContext(SPEC, fleet, Secret("t"), Secrets(), lambda _: None)
    drain(work, left, spare={"10.0.0.0", "10.0.0.1", "10.0.0.2"})
    assert ran == ["--node-id=9"]
