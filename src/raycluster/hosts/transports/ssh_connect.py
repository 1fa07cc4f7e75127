"""Makes one verified connection, through jump hosts where there are any."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from raycluster.core.errors import BeyondLibraryError, HostError, HostKeyError, UnreachableError
from raycluster.hosts.transports import ssh_options
from raycluster.hosts.transports.ssh_attempt import Ask
from raycluster.hosts.transports.ssh_channel import ChannelRefusedError
from raycluster.hosts.transports.ssh_hostkeys import ALGORITHMS, HostKey, algorithms, verify
from raycluster.hosts.transports.ssh_login import log_in
from raycluster.hosts.transports.ssh_paramiko import KINDS, Connection
from raycluster.hosts.transports.ssh_proxy import ProxyCommand
from raycluster.hosts.transports.ssh_socket import SshWire
from raycluster.hosts.transports.ssh_target import SshTarget

_MOST_NAMES = 12
_LONGEST_NAME = 64
_ALLOWING = dict(
    zip(
        KINDS,
        (
            ("KexAlgorithms", "curve25519-sha256"),
            ("HostKeyAlgorithms", "ssh-ed25519"),
            ("Ciphers", "aes256-gcm@openssh.com"),
            ("MACs", "hmac-sha2-256-etm@openssh.com"),
        ),
        strict=True,
    )
)
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True)
class OpenConnection:
    """An open connection, the connections that it runs through, and the address at its end."""

    connection: Connection
    way: tuple[Connection, ...]
    address: str

    def close(self) -> None:
        """Close this connection, then those that carried it, the nearest last."""
        for connection in (self.connection, *reversed(self.way)):
            connection.close()


def connect(target: SshTarget, ask: Ask | None) -> OpenConnection:
    """Dial, verify the host key, log in. Raises UnreachableError, HostKeyError or AuthError."""
    with contextlib.ExitStack() as undo:
        way = _way(target, ask, undo)
        connection, address = _enter(target, way, ask)
        connection.watch(ssh_options.PULSE_S, ssh_options.SILENCE_S)
        undo.pop_all()
    return OpenConnection(connection, tuple(way), address)


def host_key(target: SshTarget, ask: Ask | None) -> HostKey:
    """Dial and verify as `connect` does, without the login, and return the key that was shown."""
    with contextlib.ExitStack() as undo:
        way = _way(target, ask, undo)
        connection, _ = _verified(target, lambda: _dial(target, way[-1] if way else None))
        undo.callback(connection.close)
        return _presented(connection)


def _way(target: SshTarget, ask: Ask | None, undo: contextlib.ExitStack) -> list[Connection]:
    """Log in on the jump hosts, the nearest first; `undo` will close what was opened."""
    way: list[Connection] = []
    for hop in target.jumps:
        try:
            connection, _ = _enter(hop, way, ask)
            connection.watch(ssh_options.PULSE_S, ssh_options.SILENCE_S)
        except HostError as error:
            label = f"jump host {hop.options.host}"
            raise type(error)(
                f"{label}: {error.what}", where=target.name, hint=error.hint
            ) from error
        undo.callback(connection.close)
        way.append(connection)
    return way


def _enter(target: SshTarget, way: list[Connection], ask: Ask | None) -> tuple[Connection, str]:
    connection, address = _verified(target, lambda: _dial(target, way[-1] if way else None))
    try:
        log_in(connection, target, ask)
    except BaseException:
        connection.close()
        raise
    return connection, address


def _verified(target: SshTarget, dial: Callable[[], tuple[SshWire, str]]) -> tuple[Connection, str]:
    """Negotiate and verify; a pin that fits no key of the first kind is tried with the others."""
    offered = algorithms(target)
    if not offered:
        raise _incompatible(target, "HostKeyAlgorithms in the ssh config leaves none")
    orders = [offered]
    if target.options.host_key is not None:
        kinds = dict.fromkeys(ALGORITHMS[name] for name in offered)
        orders += [tuple(n for n in offered if ALGORITHMS[n] == kind) for kind in kinds]
    mismatch: HostKeyError | None = None
    for order in orders:
        wire, address = dial()
        try:
            connection = _negotiated(target, wire, order)
        except _NoCommonKeyError:
            continue
        try:
            direct = not target.jumps and target.proxy_command is None
            verify(target, _presented(connection), address if direct else "")
        except HostKeyError as error:
            connection.close()
            mismatch = mismatch or error
        else:
            return connection, address
    raise mismatch or _incompatible(target, "no host key type in common with those known here")


class _NoCommonKeyError(Exception):
    pass


def _negotiated(target: SshTarget, wire: SshWire, offered: tuple[str, ...]) -> Connection:
    connection = Connection(wire, target.timeout)
    connection.banner_timeout = target.patience
    connection.get_security_options().key_types = offered
    try:
        connection.start_client(timeout=target.patience + target.timeout)
        if not connection.initial_kex_done:
            raise EOFError
    except IncompatiblePeer as error:
        connection.close()
        lacking = connection.nothing_in_common
        if lacking is None:
            raise _incompatible(target, str(error)) from error
        if lacking[0] == KINDS[1] and len({ALGORITHMS[name] for name in offered}) == 1:
            raise _NoCommonKeyError from error
        raise _nothing_in_common(target, *lacking) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        try:
            raise _not_negotiated(target, connection, wire) from error
        finally:
            connection.close()
    return connection


def _presented(connection: Connection) -> HostKey:
    key = connection.get_remote_server_key()
    return HostKey(key.get_name(), key.asbytes())


def _not_negotiated(target: SshTarget, connection: Connection, wire: SshWire) -> UnreachableError:
    watched = connection.watched
    if isinstance(wire, ProxyCommand) and not (connection.spoke_ssh and not watched.ended):
        opening = b"" if connection.spoke_ssh else watched.opening
        return wire.failed(target, opening)
    place = f"{target.host} port {target.port}"
    if connection.spoke_ssh:
        return UnreachableError(
            f"{place} closed the connection, or stopped responding, during the key exchange",
            where=target.name,
            hint="check sshd's log there: MaxStartups, a firewall or a ban may be the cause",
        )
    hint = "correct the port; if it is correct, check whether sshd there is overloaded"
    if watched.opening:
        why, hint = "it uses another protocol", "correct the port"
    elif watched.ended:
        why = "it closed the connection"
        hint += ", or a ban or MaxStartups blocks this machine"
    else:
        why = f"no banner within {target.patience:g} s"
    return UnreachableError(
        f"{place} responds, but not as an SSH server ({why})", where=target.name, hint=hint
    )


def _incompatible(target: SshTarget, why: str) -> BeyondLibraryError:
    return BeyondLibraryError(
        f"{target.host} port {target.port} and this program have no algorithm in common: {why}",
        where=target.name,
        hint="update sshd there",
    )


def _nothing_in_common(
    target: SshTarget, kind: str, theirs: tuple[str, ...], ours: tuple[str, ...]
) -> BeyondLibraryError:
    setting, name = _ALLOWING[kind]
    return BeyondLibraryError(
        f"{target.host} port {target.port} and raycluster's SSH library have no {kind} in common: "
        f"the host offers {_listed(theirs)}; the library supports {_listed(ours)}",
        where=target.name,
        hint=f"allow one in sshd_config there (`{setting} +{name}`, or add it to the existing "
        f"{setting} line), and restart sshd",
    )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(name[:_LONGEST_NAME] for name in names[:_MOST_NAMES]) + more


def _dial(target: SshTarget, through: Connection | None) -> tuple[SshWire, str]:
    if target.passes_descriptor and through is None:
        raise BeyondLibraryError(
            "its ProxyCommand passes a file descriptor (ProxyUseFdpass), which is not supported",
            where=target.name,
            hint="let it forward the connection itself, and remove ProxyUseFdpass from the config",
        )
    if through is not None:
        return _dial_through(target, through), ip_address(target.host)
    if target.proxy_command is not None:
        return ProxyCommand.start(target, target.proxy_command), ip_address(target.host)
    return _dial_directly(target)


def _dial_directly(target: SshTarget) -> tuple[SshWire, str]:
    family = _FAMILIES.get(target.family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(target.host, target.port, family, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise UnreachableError(
            f"the name {target.host} cannot be resolved ({_reason(error)})",
            where=target.name,
            hint="correct host, or use its IP address",
        ) from error
    deadline = time.monotonic() + target.timeout
    reason = OSError("no address")
    for left, (kind, *_, address) in zip(range(len(found), 0, -1), found, strict=True):
        wire = socket.socket(kind, socket.SOCK_STREAM)
        wire.settimeout(max(0.1, (deadline - time.monotonic()) / left))
        try:
            wire.connect(address)
        except OSError as error:
            wire.close()
            reason = error
        else:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return wire, str(address[0])
    raise _no_connection(target, reason) from reason


def _no_connection(target: SshTarget, reason: OSError) -> UnreachableError:
    place = f"{target.host} port {target.port}"
    if isinstance(reason, ConnectionRefusedError):
        what, hint = f"{place} refused the connection", "start sshd there, or correct the port"
    elif isinstance(reason, TimeoutError):
        what = f"{place} did not respond within {target.timeout:g} s"
        hint = "check whether the host is up and a firewall allows the port"
    else:
        what = f"{place} cannot be reached: {_reason(reason)}"
        hint = "check the network between this machine and the host"
    return UnreachableError(what, where=target.name, hint=hint)


def _dial_through(target: SshTarget, through: Connection) -> SshWire:
    place = f"{target.host} port {target.port}"
    try:
        # sshd switches Nagle's delay off at the first command; a bastion may refuse to run any.
        with (
            contextlib.suppress(ChannelRefusedError, TimeoutError, ConnectionResetError),
            contextlib.closing(through.session(target.timeout)) as probe,
        ):
            probe.execute(":")
        return through.stream(
            "direct-tcpip", target.host, target.port, "127.0.0.1", 0, timeout=target.timeout
        )
    except ChannelRefusedError as error:
        prohibited = error.reason == ChannelRefusedError.PROHIBITED
        why = "forbids forwarding (AllowTcpForwarding)" if prohibited else f"says: {error}"
        raise UnreachableError(
            f"{place} cannot be reached through the jump host, which {why}",
            where=target.name,
            hint="correct host and port as the jump host sees them, or its sshd_config",
        ) from error
    except (TimeoutError, OSError) as error:
        raise UnreachableError(
            f"{place} did not respond through the jump host: {_reason(error)}",
            where=target.name,
            hint="check whether the jump host can reach it",
        ) from error


def ip_address(host: str) -> str:
    """Return what a name means here, or the name where it means nothing."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with contextlib.suppress(OSError, UnicodeError):
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    return host


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__
