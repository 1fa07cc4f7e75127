from __future__ import annotations

import socket
from collections.abc import Iterable

from raycluster.serve.direct import Address, refusing
from raycluster.serve.direct import straight as edited_by

CONFIG = """\
global
    maxconn 4096
frontend http_frontend
    bind 127.0.0.1:8000
    acl is_http-a path_beg /
    use_backend http-a if is_http-a
    use_backend http-router if is_http-router
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-a
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms fall 2 check
    server ONE 127.0.0.1:30000 check observe layer4
    server TWO 10.0.0.2:30001 check observe layer4
    server LAST 127.0.0.1:8500 check backup
backend http-router
    server R 127.0.0.1:30002 check
listen stats
    bind :8404
"""


def nowhere(_: Iterable[Address]) -> frozenset[Address]:
    return frozenset()


def straight(config: str, limits: dict[str, list[int]], offset: int, *, address: str = "") -> str:
    """Every replica has an engine with a server."""
    return edited_by(config, limits, offset, address=address, absent=nowhere)


def section(config: str, name: str) -> list[str]:
    """Return the lines of a section."""
    _, _, rest = config.partition(f"{name}\n")
    lines = rest.splitlines()
    end = next((n for n, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    return [line.strip() for line in lines[:end]]


def test_requests_go_to_engines_and_checks_to_replicas() -> None:
    lines = section(straight(CONFIG, {"a": [8, 16]}, 333, address="10.0.0.1"), "backend http-a")
    servers = [line for line in lines if line.startswith("server")]
    assert servers == [
        "server ONE 10.0.0.1:30333 check addr 127.0.0.1 port 30000 observe layer4 maxconn 8",
        "server TWO 10.0.0.2:30334 check addr 10.0.0.2 port 30001 observe layer4 maxconn 8",
        "server LAST 127.0.0.1:8500 check backup",
    ]
    assert any("status 429" in line and line.endswith("if { queue ge 32 }") for line in lines)


def test_an_only_node_is_asked_on_loopback() -> None:
    lines = section(straight(CONFIG, {"a": [8, 16]}, 333), "backend http-a")
    assert (
        "server ONE 127.0.0.1:30333 check addr 127.0.0.1 port 30000 observe layer4 maxconn 8"
        in (lines)
    )


def test_replicas_answer_for_themselves() -> None:
    edited = straight(CONFIG, {"a": [8, 16]}, 333)
    assert section(edited, "backend http-a-own") == [
        "http-reuse always",
        "server ONE 127.0.0.1:30000 track http-a/ONE",
        "server TWO 10.0.0.2:30001 track http-a/TWO",
        "server LAST 127.0.0.1:8500 track http-a/LAST backup",
    ]
    lines = section(edited, "frontend http_frontend")
    own = next(n for n, line in enumerate(lines) if "http-a-own" in line)
    assert "raycluster/" in lines[own]
    assert lines[own + 1] == "use_backend http-a if is_http-a"


def test_engines_are_asked_for_what_one_of_them_keeps() -> None:
    edited = straight(CONFIG, {"a": [8, 16]}, 333)
    lines = section(edited, "backend raycluster-kept")
    assert [line for line in lines if line.startswith("server")] == [
        "server http-a-ONE 127.0.0.1:30333 track http-a/ONE",
        "server http-a-TWO 10.0.0.2:30334 track http-a/TWO",
    ]
    assert any(line.startswith("lua-load") for line in section(edited, "global"))
    ways = [x for x in section(edited, "frontend http_frontend") if x.startswith("use_backend")]
    assert [way.split()[1] for way in ways[:2]] == ["raycluster-kept", "http-a-own"]


def test_without_engines_nobody_is_asked() -> None:
    def absent(addresses: Iterable[Address]) -> frozenset[Address]:
        return frozenset(addresses)

    assert "raycluster-kept" not in edited_by(CONFIG, {"a": [8, 16]}, 333, absent=absent)


def test_what_is_no_model_stays_as_serve_wrote_it() -> None:
    edited = straight(CONFIG, {"a": [8, 16]}, 333)
    assert section(edited, "backend http-router") == section(CONFIG, "backend http-router")
    assert straight(CONFIG, {}, 333) == CONFIG
    assert straight(CONFIG, {"a": [8, 16]}, 0) == CONFIG


def test_a_model_without_replicas_has_serve_s_proxy_alone() -> None:
    asleep = "".join(x for x in CONFIG.splitlines(True) if "server ONE" not in x and "TWO" not in x)
    lines = section(straight(asleep, {"a": [8, 16]}, 333), "backend http-a")
    assert not any("status 429" in line for line in lines)
    assert "server LAST 127.0.0.1:8500 check backup" in lines


def test_a_replica_of_an_earlier_release_gets_its_requests_itself() -> None:
    asked: list[Address] = []

    def absent(addresses: Iterable[Address]) -> frozenset[Address]:
        asked.extend(sorted(addresses))
        return frozenset({("10.0.0.2", 30334)})

    edited = edited_by(CONFIG, {"a": [8, 16]}, 333, address="10.0.0.1", absent=absent)
    lines = section(edited, "backend http-a")
    assert "server TWO 10.0.0.2:30001 check observe layer4" in lines
    assert any(line.startswith("server ONE 10.0.0.1:30333 ") for line in lines)
    assert asked == [("10.0.0.1", 30333), ("10.0.0.2", 30334), ("127.0.0.1", 30333)]


def test_an_engine_that_started_when_its_node_was_alone_is_asked_on_loopback() -> None:
    def absent(_: Iterable[Address]) -> frozenset[Address]:
        return frozenset({("10.0.0.1", 30333)})

    edited = edited_by(CONFIG, {"a": [8, 16]}, 333, address="10.0.0.1", absent=absent)
    lines = section(edited, "backend http-a")
    assert any(line.startswith("server ONE 127.0.0.1:30333 check addr 127.0.0.1") for line in lines)


def test_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        open_, closed = there.getsockname(), bound.getsockname()
        assert refusing([open_, closed]) == {closed}


def test_ipv6_addresses_are_in_brackets() -> None:
    config = "backend http-a\n    server R ::1:30000 check\n    server S fd00::2:30001 check\n"
    lines = straight(config, {"a": [256, 1024]}, 333, address="fd00::1").splitlines()
    assert "    server R [fd00::1]:30333 check addr [::1] port 30000 maxconn 256" in lines
    assert "    server S [fd00::2]:30334 check addr [fd00::2] port 30001 maxconn 256" in lines
