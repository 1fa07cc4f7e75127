"""Who takes from whom, and an exchange between programs that really run."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from raycluster.exchange import Party, all_private, exchange, ways
from raycluster.serve import transfer
from raycluster.transports.local import LocalTransport

CONTENT = random.Random(6).randbytes(2_500_000)


@pytest.mark.parametrize(
    ("holders", "takers", "expected"),
    [
        (["a"], ["b", "c"], {"b": ("a",), "c": ("b", "a")}),
        (
            ["a", "b"],
            ["c", "d", "e"],
            {"c": ("a", "b"), "d": ("b", "a"), "e": ("c", "a", "b")},
        ),
        (["a"], [], {}),
        (["a", "b", "c"], ["d"], {"d": ("a", "b", "c")}),
    ],
)
def test_takers_stand_in_a_row_behind_each_holder(
    holders: list[str], takers: list[str], expected: dict[str, tuple[str, ...]]
) -> None:
    assert ways(holders, takers) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["10.0.0.1", "192.168.1.2", "fd00::1"], True),
        (["100.64.0.7", "172.16.0.1"], True),
        (["10.0.0.1", "8.8.8.8"], False),
        (["2606:4700::1"], False),
    ],
)
def test_public_addresses_are_noticed(addresses: list[str], expected: bool) -> None:
    assert all_private(addresses) is expected


class Places:
    """Folders as hosts: a loopback address for each, and one manifest with a path per host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders: dict[str, dict[str, Any]] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    def party(self, number: int) -> Party:
        name = f"h{number}"
        path = self.folder / name / "order.json"
        path.parent.mkdir()
        digest = hashlib.sha256(CONTENT).hexdigest()
        item = {"path": str(path.with_name("big")), "size": len(CONTENT), "digest": digest}

        def deliver(content: bytes) -> None:
            self.orders[name] = json.loads(content)
            path.write_text(json.dumps({**self.orders[name], "items": [item]}))

        argv = (sys.executable, "-I", str(transfer.__file__), str(path))
        return Party(name, f"127.0.0.{number}", LocalTransport(name), argv, {}, deliver)

    def read(self, number: int) -> bytes:
        return (self.folder / f"h{number}" / "big").read_bytes()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_three_hosts_take_what_one_holds(places: Places) -> None:
    holder, takers = places.party(1), [places.party(n) for n in (2, 3, 4)]
    (places.folder / "h1/big").write_bytes(CONTENT)
    told: list[tuple[str, Any]] = []
    problems = exchange(
        [holder], takers, places.port, {}, lambda host, line: told.append((host, line))
    )
    assert problems == {}
    assert [places.read(n) for n in (2, 3, 4)] == [CONTENT] * 3
    finished = [host for host, line in told if line["done"].flag() and host != "h1"]
    assert sorted(finished) == ["h2", "h3", "h4"]
    assert not list(places.folder.glob("*/order.json")), "the token does not stay"
    tokens = {order["token"] for order in places.orders.values()}
    assert len(tokens) == 1
    assert {len(token) for token in tokens} == {64}
    assert places.orders["h3"]["peers"] == [["127.0.0.2", places.port], ["127.0.0.1", places.port]]


def test_a_port_that_is_taken_is_said_and_nobody_waits(places: Places) -> None:
    holder, taker = places.party(1), places.party(2)
    (places.folder / "h1/big").write_bytes(CONTENT)
    with socket.create_server(("127.0.0.1", places.port)):
        problems = exchange([holder], [taker], places.port, {}, lambda *_: None)
    assert "cannot listen on 127.0.0.1" in problems["h1"]
    assert problems["h2"] == "no host serves"


def test_a_program_that_breaks_is_told_by_its_last_words(places: Places) -> None:
    holder, taker = places.party(1), places.party(2)
    (places.folder / "h1/big").write_bytes(CONTENT)
    broken = Party(
        "h2",
        taker.address,
        taker.shell,
        (sys.executable, "-c", "raise ValueError('no such thing')"),
        {},
        lambda _: None,
    )
    problems = exchange([holder], [broken], places.port, {}, lambda *_: None)
    assert problems == {"h2": "ValueError: no such thing"}
