"""Reaches a host with the system's `ssh`: it logs in as it alone can, and carries our channels.

ssh reads its own config, judges the host key and logs in. Then its master connection is put into
proxy mode (PROTOCOL.mux in OpenSSH's source): what follows are the channels of `ssh_paramiko`.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

from raycluster.contracts import Ask, Tell
from raycluster.errors import AuthError, HostError, HostKeyError, UnreachableError
from raycluster.transports.ssh import SshTransport, command_line
from raycluster.transports.ssh_askpass import Askpass
from raycluster.transports.ssh_connect import Pulse, ip_address
from raycluster.transports.ssh_hostkeys import known_hosts
from raycluster.transports.ssh_master import SILENT, Master
from raycluster.transports.ssh_options import SshOptions, check_options
from raycluster.transports.ssh_paramiko import Multiplexed
from raycluster.transports.ssh_target import resolve

_HELLO, _VERSION, _PROXY, _IS_PROXY = 1, 4, 0x1000000F, 0x8000000F
_LONGEST_ANSWER = 4096
_ORDER_SECONDS = 10.0
_CONFIG_SECONDS = 30.0
_KINDS = ("", "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
_PINNABLE = (*_KINDS, "ssh-rsa")


@dataclass(frozen=True)
class SystemLink:
    """The channels of a master connection, and the address at its end."""

    connection: Multiplexed
    master: Master
    address: str

    def close(self) -> None:
        """Close the channels, then end ssh."""
        self.connection.close()
        self.master.close()


def open_system(
    name: str,
    options: SshOptions,
    *,
    ask: Ask | None = None,
    tell: Tell = lambda _: None,
    pulse: float = 5.0,
    silence: float = 20.0,
) -> SshTransport:
    """Connect as `open_ssh` does, with the system's ssh.

    `ask` is given the prompts for a passphrase or PIN, `tell` the request to touch a key.
    Raises UnreachableError, HostKeyError, AuthError, SpecError or UsageError.
    """
    check_options(name, options)
    _refuse_revoked_pin(name, options)
    address = _address(name, options)
    beat = Pulse(pulse, silence)
    first: HostKeyError | None = None
    for kind in _PINNABLE if options.host_key else _KINDS[:1]:
        try:
            with contextlib.ExitStack() as stack:
                master = _logged_in(name, command_line(options, kind), ask, tell, beat, stack)
                connection = Multiplexed(_proxied(name, master), lambda: _is_silent(master))
                stack.pop_all()
        except HostKeyError as error:
            first = first or _explained(error, options)
        else:
            return SshTransport(name, SystemLink(connection, master, address))
    raise first or AssertionError("there is a first kind")


def _logged_in(
    name: str,
    command: tuple[str, ...],
    ask: Ask | None,
    tell: Tell,
    pulse: Pulse,
    stack: contextlib.ExitStack,
) -> Master:
    interval = max(1, round(pulse.interval))
    settings = {
        "ServerAliveInterval": f"{interval}",
        "ServerAliveCountMax": f"{max(1, round(pulse.silence / interval))}",
    }
    askpass = None if ask is None else stack.enter_context(Askpass(ask, tell))
    settings |= SILENT if askpass is None else askpass.OPTIONS
    environment = None if askpass is None else askpass.environment
    try:
        master = Master(command, name, options=settings, environment=environment)
        stack.enter_context(master)
    except FileNotFoundError as error:
        raise UnreachableError(
            "no `ssh` on this machine", where=name, hint="install the OpenSSH client"
        ) from error
    master.await_login(lambda: askpass is not None and askpass.asking)
    if askpass is not None:
        askpass.close()
    return master


def _proxied(name: str, master: Master) -> socket.socket:
    """Return a connection to ssh that carries packets of channels and nothing else."""
    wire = socket.socket(socket.AF_UNIX)
    try:
        wire.settimeout(_ORDER_SECONDS)
        wire.connect(str(master.control))
        _send(wire, _HELLO, _VERSION)
        _send(wire, _PROXY, 0)
        kinds = [_answer(wire), _answer(wire)]
    except (OSError, EOFError) as error:
        wire.close()
        raise master.refusal() if master.said() else _no_orders(name) from error
    if kinds != [_HELLO, _IS_PROXY]:
        wire.close()
        raise _no_orders(name)
    return wire


def _no_orders(name: str) -> HostError:
    return UnreachableError(
        "ssh logged in, but its master connection has no proxy mode",
        where=name,
        hint='OpenSSH 7.4 or newer has it; or set ssh = "library"',
    )


def _send(wire: socket.socket, *numbers: int) -> None:
    body = struct.pack(f">{len(numbers)}I", *numbers)
    wire.sendall(struct.pack(">I", len(body)) + body)


def _answer(wire: socket.socket) -> int:
    """Return the kind of the next message."""
    (size,) = struct.unpack(">I", _exactly(wire, 4))
    if not 4 <= size <= _LONGEST_ANSWER:
        raise EOFError
    return int(struct.unpack(">I", _exactly(wire, size)[:4])[0])


def _exactly(wire: socket.socket, size: int) -> bytes:
    data = wire.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data


def _is_silent(master: Master) -> bool:
    """Tell whether ssh ended for want of a sign of life: only then it does so without a word."""
    return not master.said()
