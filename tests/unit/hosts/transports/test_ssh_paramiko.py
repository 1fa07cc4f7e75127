"""The private names of paramiko that ssh_paramiko.py builds on, looked for by name."""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import inspect
import socket
from types import FunctionType

import paramiko
import pytest
from paramiko.agent import AgentSSH
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.packet import Packetizer

from raycluster.hosts.transports import ssh_channel, ssh_packets, ssh_paramiko

ADVICE = "; read ssh_paramiko.py against the new paramiko, then change HOLDS_FOR"
NAMES = {
    paramiko.Channel: (
        "_check_add_window _feed _feed_extended _handle_close _handle_eof _handle_request"
        " _request_failed _request_success _send _set_closed _set_remote_channel _set_transport"
        " _set_window _unlink _wait_for_send_window _window_adjust"
    ),
    paramiko.Transport: (
        "_channel_handler_table _next_channel _parse_channel_open_failure"
        " _parse_channel_open_success _send_user_message stop_thread"
        " _cipher_info _kex_info _send_message _really_parse_kex_init"
        " preferred_kex preferred_keys preferred_ciphers preferred_macs"
    ),
    Packetizer: (
        "REKEY_BYTES REKEY_PACKETS start_handshake handshake_timed_out complete_handshake read_all"
        " readline write_all set_inbound_cipher set_outbound_cipher"
    ),
    AgentSSH: "_connect _close _send_message",
    AuthOnlyHandler: "_parse_userauth_info_request wait_for_response abort",
}


def test_the_version_is_one_that_was_read() -> None:
    assert paramiko.__version__.startswith(f"{ssh_paramiko.HOLDS_FOR}."), ADVICE


@pytest.mark.parametrize("owner", NAMES)
def test_the_names_are_there(owner: type) -> None:
    missing = [name for name in NAMES[owner].split() if not hasattr(owner, name)]
    assert missing == [], f"{owner.__name__} lost {missing}{ADVICE}"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (paramiko.Channel._wait_for_send_window, ["self", "size"]),
        (paramiko.Channel._set_window, ["self", "window_size", "max_packet_size"]),
        (paramiko.Channel._send, ["self", "s", "m"]),
        (paramiko.Transport._send_user_message, ["self", "data"]),
        (Packetizer.start_handshake, ["self", "timeout"]),
        (Packetizer.read_all, ["self", "n", "check_rekey"]),
        (paramiko.Channel._feed, ["self", "m"]),
    ],
)
def test_they_take_what_we_give(function: object, parameters: list[str]) -> None:
    assert callable(function)
    assert list(inspect.signature(function).parameters) == parameters, ADVICE


def test_every_message_of_a_channel_is_dispatched_by_us() -> None:
    theirs = {kind: handler.__name__ for kind, handler in _table().items()}
    assert theirs == ssh_channel.HANDLERS, ADVICE


def _table() -> dict[int, FunctionType]:
    table: dict[int, FunctionType] = paramiko.Transport._channel_handler_table
    return table


def test_the_library_does_not_rekey_within_a_run() -> None:
    assert ssh_packets.Packetizer.REKEY_BYTES > 1 << 34


class Ended:
    """Stands for a connection that may be ended."""

    default_window_size = 1000

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def fed(chan: ssh_channel.Chan, data: bytes) -> None:
    message = paramiko.Message()
    message.add_string(data)
    message.rewind()
    chan._feed(message)


@pytest.mark.parametrize("kind", [ssh_channel.Chan, ssh_channel.Session])
@pytest.mark.parametrize("size", [1, 500])
def test_a_peer_that_sends_beyond_its_window_is_cut_off(
    kind: type[ssh_channel.Chan], size: int
) -> None:
    chan, connection = kind(1), Ended()
    chan.transport = connection  # type: ignore[assignment]
    for _ in range(20_000 // size):
        fed(chan, b"x" * size)
    assert connection.closed
    chan.active = False


def test_a_packet_that_nobody_may_send_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(100))
        packetizer = ssh_packets.Packetizer(ssh_paramiko.WatchedSocket(ours))
        with pytest.raises(paramiko.SSHException, match="a packet of 4294967295 bytes"):
            packetizer.read_all(0xFFFFFFFF)
