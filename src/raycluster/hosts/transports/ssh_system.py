"""Reaches a host with the system's `ssh`: it logs in as it alone can, and carries our channels.

ssh reads its own config, judges the host key and logs in. Then its master connection is put into
proxy mode (PROTOCOL.mux in OpenSSH's source): what follows are the channels of `ssh_paramiko`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from dataclasses import dataclass

from raycluster.core.errors import HostError, HostKeyError, UnreachableError
from raycluster.hosts.transports import ssh_options
from raycluster.hosts.transports.ssh import SshTransport
from raycluster.hosts.transports.ssh_askpass import Askpass
from raycluster.hosts.transports.ssh_attempt import Ask
from raycluster.hosts.transports.ssh_command import command_line
from raycluster.hosts.transports.ssh_connect import ip_address
from raycluster.hosts.transports.ssh_hostkeys import checked
from raycluster.hosts.transports.ssh_master import SILENT, Master, last_lines, refusal
from raycluster.hosts.transports.ssh_options import SshOptions
from raycluster.hosts.transports.ssh_paramiko import Multiplexed
from raycluster.hosts.transports.ssh_target import resolve

_HELLO, _VERSION, _PROXY, _IS_PROXY = 1, 4, 0x1000000F, 0x8000000F
_LONGEST_ANSWER = 4096
_ORDER_SECONDS = 10.0
_CONFIG_SECONDS = 30.0
_KINDS = (
    *("", "ssh-ed25519"),  # first what ssh and the host choose
    *("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"),
)


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
) -> SshTransport:
    """Connect as `open_ssh` does, with the system's ssh, which is given its prompts by `ask`.

    Raises UnreachableError, HostKeyError, AuthError, SpecError or UsageError.
    """
    options = checked(resolve(name, options))
    address = _address(name, options)
    first: HostKeyError | None = None
    for kind in _KINDS if options.host_key else _KINDS[:1]:
        try:
            link = _linked(name, command_line(options, kind), address, ask)
        except HostKeyError as error:
            first = first or error
        else:
            return SshTransport(name, link)
    assert first is not None  # noqa: S101 - there is a first kind
    if options.host_key is None:
        raise first
    raise HostKeyError(
        f"its host key is not the one pinned in the spec, {options.host_key} ({first.what})",
        where=name,
        hint="if the host was reinstalled, correct host_key; if not, this may be a "
        "man-in-the-middle attack",
    ) from first


def _linked(name: str, command: tuple[str, ...], address: str, ask: Ask | None) -> SystemLink:
    interval = max(1, round(ssh_options.PULSE_S))
    settings = {
        "ServerAliveInterval": f"{interval}",
        "ServerAliveCountMax": f"{max(1, round(ssh_options.SILENCE_S / interval) - 1)}",
    }
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as login:
        askpass = None if ask is None else login.enter_context(Askpass(ask))
        master = Master(
            command,
            name,
            options={**settings, **(SILENT if askpass is None else askpass.OPTIONS)},
            environment=None if askpass is None else askpass.environment,
        )
        stack.enter_context(master)
        master.await_login(lambda: askpass is not None and askpass.asking)
        connection = Multiplexed(_proxied(name, master), master.fell_silent)
        stack.pop_all()
    return SystemLink(connection, master, address)


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
        "ssh logged in, but its master connection does not support proxy mode",
        where=name,
        hint='use OpenSSH 7.4 or newer, or set ssh = "library"',
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


def _address(name: str, options: SshOptions) -> str:
    """Return what the host's name, as ssh's config has it, means here."""
    program, *rest = command_line(options)
    try:
        done = subprocess.run(
            (program, "-G", *rest),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CONFIG_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnreachableError(
            "there is no `ssh` on this machine",
            where=name,
            hint="install the OpenSSH client",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            "ssh does not finish reading its config",
            where=name,
            hint="check `Match exec` in the ssh config",
        ) from error
    if done.returncode:
        raise refusal(last_lines(done.stderr), name)
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("hostname "):
            return ip_address(line.partition(" ")[2])
    return ip_address(options.host)
