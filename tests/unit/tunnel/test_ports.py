"""Which local port each forward gets, and the lines that a person reads."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from raycluster.core.errors import PortInUseError
from raycluster.tunnel.ports import Forward, choose_ports, describe, is_free


@pytest.fixture
def run_of_ports() -> tuple[int, ...]:
    """Three neighbouring ports that were free a moment ago."""
    for start in range(21000, 29000, 7):
        if all(is_free(start + step) for step in range(3)):
            return start, start + 1, start + 2
    pytest.fail("no three free ports")


@pytest.fixture
def taken(run_of_ports: tuple[int, ...]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", run_of_ports[0])):
        yield run_of_ports[0]


def test_the_local_port_is_the_remote_one(run_of_ports: tuple[int, ...]) -> None:
    (chosen,) = choose_ports([Forward("API", ("127.0.0.1", run_of_ports[0]))])
    assert chosen.local_port == run_of_ports[0]


def test_the_next_free_port_is_taken_but_never_one_that_another_wants(taken: int) -> None:
    first, second = choose_ports(
        [Forward("API", ("127.0.0.1", taken)), Forward("gateway", ("127.0.0.1", taken + 1))]
    )
    assert (first.port, second.port) == (taken + 2, taken + 1)


def test_two_remotes_with_one_port_get_two_local_ones(run_of_ports: tuple[int, ...]) -> None:
    port = run_of_ports[0]
    chosen = choose_ports([Forward("a", ("10.0.0.1", port)), Forward("b", ("10.0.0.2", port))])
    assert [forward.port for forward in chosen] == [port, port + 1]


def test_a_choice_stays_when_it_is_made_again(taken: int) -> None:
    chosen = choose_ports([Forward("API", ("127.0.0.1", taken))])
    assert choose_ports(chosen) == chosen


def test_a_port_that_answers_on_all_addresses_is_taken(run_of_ports: tuple[int, ...]) -> None:
    with socket.create_server(("0.0.0.0", run_of_ports[0])):
        assert not is_free(run_of_ports[0])


def test_a_port_whose_connections_linger_is_free(run_of_ports: tuple[int, ...]) -> None:
    with socket.create_server(("127.0.0.1", run_of_ports[0])) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()  # the server's side ends first and stays in TIME_WAIT
        client.close()
    assert is_free(run_of_ports[0])


def test_no_port_left_says_what_to_do() -> None:
    with pytest.raises(PortInUseError, match="up for API"):
        choose_ports([Forward("API", ("127.0.0.1", 65535), 65536)])


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (
            Forward("API", ("127.0.0.1", 8000), 8000, "http://127.0.0.1:{port}/v1"),
            "API  http://127.0.0.1:8000/v1  ->  head:127.0.0.1:8000",
        ),
        (
            Forward("API", ("127.0.0.1", 8000), 8001),
            "API  http://127.0.0.1:8001  ->  head:127.0.0.1:8000  (another local port)",
        ),
        (
            Forward("API", ("fd00::1", 8000)),
            "API  http://127.0.0.1:8000  ->  head:[fd00::1]:8000",
        ),
    ],
)
def test_a_line_per_forward(forward: Forward, line: str) -> None:
    assert describe([forward], "head") == (line,)


def test_lines_are_aligned() -> None:
    lines = describe([Forward("API", ("h", 80)), Forward("Ray dashboard", ("h", 8265))], "head")
    assert len({line.index("->") for line in lines}) == 1
    assert len({line.index("http") for line in lines}) == 1


def test_nothing_to_forward_gives_no_lines() -> None:
    assert describe([], "head") == ()
