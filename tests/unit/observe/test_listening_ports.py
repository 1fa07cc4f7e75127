"""What listens on a host, as its kernel writes it."""

from __future__ import annotations

import random
import socket

import pytest

from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.listening_ports import OpenPort, listeners_in, read_listeners


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tcp 00000000:1F90 42", OpenPort("tcp", 8080, 42)),
        ("udp 0A00020F:14E9 7", OpenPort("udp", 5353, 7)),
        (f"tcp6 {'0' * 32}:0016 9", OpenPort("tcp", 22, 9)),
        ("tcp 0100007F:1F90 42", None),
        ("tcp 0200007F:1F90 42", None),
        (f"udp6 {'0' * 24}01000000:1F90 42", None),
        ("tcp6 0000000000000000FFFF00000100007F:1F90 42", None),
        ("tcp6 0000000000000000FFFF00000A00020F:1F90 42", OpenPort("tcp", 8080, 42)),
        ("udp 00000000:0000 42", None),
        ("tcp 00000000:1F90 -1", None),
        ("tcp 00000000:FFFFF 1", None),
        ("tcp 00000000:1F90", None),
        (f"tcp 00000000:1F90 {'9' * 300}", None),
        ("\x1b]52;c;aaaa\x07", None),
    ],
)
def test_a_line_is_a_listener_besides_loopback_or_nothing(line: str, found: object) -> None:
    assert listeners_in(f"{line}\n".encode()) == ({found} if found else set())


def test_no_answer_of_a_host_raises() -> None:
    choice = random.Random(7)
    for _ in range(500):
        listeners_in(choice.randbytes(200) + b"\ntcp 00000000:1F90 1\n")


def test_this_machine_tells() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as seen,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        ports = {
            each.port for each in read_listeners(LocalTransport("me")) if each.protocol == "tcp"
        }
        assert seen.getsockname()[1] in ports
        assert own.getsockname()[1] not in ports
