"""Logs in: which keys are tried, in which order, and what to say when none was taken."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from raycluster.errors import AuthError
from raycluster.transports.ssh_files import read_file
from raycluster.transports.ssh_hostkeys import HostKey
from raycluster.transports.ssh_paramiko import Agent, Connection
from raycluster.transports.ssh_target import Target

Ask = Callable[[str], str]
_PUBLIC = ("ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC KEY")
_AGENT_SECONDS = 10.0


class _SkippedError(Exception):
    """A key file that cannot be used; the text says why, `hint` what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass
class _Attempt:
    target: Target
    ask: Ask | None
    tried: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    offered: set[bytes] = field(default_factory=set)


def log_in(connection: Connection, target: Target, ask: Ask | None) -> None:
    """Authenticate with the agent and key files of a target. Raises AuthError.

    `ask` is called with a prompt for the passphrase of an encrypted key that no agent holds.
    """
    attempt = _Attempt(target, ask)
    with contextlib.closing(_agent(target)) as agent:
        for label, key in _keys(attempt, agent.get_keys()):
            attempt.tried.append(label)
            if _accepted(connection, attempt, key):
                return
    allowed = _allowed(connection, target)
    if allowed is not None:
        raise _refused(attempt, allowed)


def _accepted(connection: Connection, attempt: _Attempt, key: paramiko.PKey) -> bool:
    target = attempt.target
    try:
        left = connection.auth_publickey(target.user, key)
    except paramiko.BadAuthenticationType as error:
        raise _refused(attempt, error.allowed_types) from error
    except (paramiko.SSHException, EOFError, OSError, ValueError) as error:
        if not connection.alive:
            raise _cut_off(attempt) from error
        return False
    if left:
        raise AuthError(
            f"the key was taken for user {target.user!r}, but the host also asks for "
            f"{', '.join(left)}",
            where=target.name,
            hint="allow this key alone on the host (AuthenticationMethods in sshd_config)",
        )
    return True


def _allowed(connection: Connection, target: Target) -> list[str] | None:
    """Return what the host lets a user log in with, None when it asks for nothing."""
    try:
        connection.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except (paramiko.SSHException, EOFError, OSError):
        return []
    return None


def _refused(attempt: _Attempt, allowed: list[str]) -> AuthError:
    target = attempt.target
    tried = f"tried {'; '.join(attempt.tried)}" if attempt.tried else "there was no key to try"
    accepts = f"; it accepts {', '.join(allowed)}" if allowed else ""
    usual = f"add your public key to ~{target.user}/.ssh/authorized_keys there, or correct user "
    return AuthError(
        f"the host refused user {target.user!r}: {tried}{accepts}",
        where=target.name,
        hint="; ".join(dict.fromkeys([*attempt.hints, usual + "and identity_file"])),
    )


def _cut_off(attempt: _Attempt) -> AuthError:
    return AuthError(
        f"the host ended the connection while user {attempt.target.user!r} logged in: "
        f"tried {'; '.join(attempt.tried)}",
        where=attempt.target.name,
        hint="if these are too many keys, set identity_file and `IdentitiesOnly yes` for the host",
    )


class _NoAgent:
    def get_keys(self) -> tuple[paramiko.AgentKey, ...]:
        return ()

    def close(self) -> None:
        pass


def _agent(target: Target) -> Agent | _NoAgent:
    if target.agent is None or not hasattr(socket, "AF_UNIX"):
        return _NoAgent()
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    wire.settimeout(_AGENT_SECONDS)
    try:
        wire.connect(target.agent)
        return Agent(wire)
    except (OSError, paramiko.SSHException):
        wire.close()
        return _NoAgent()


def _keys(
    attempt: _Attempt, held: tuple[paramiko.AgentKey, ...]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield keys as ssh does: chosen ones that the agent holds, files, then the agent's others."""
    target = attempt.target
    if target.required_key is not None:
        _check_required(target, target.required_key)
    public = {_public_half(path) for path in target.key_files}
    chosen = [key for key in held if key.blob in public]
    others = [] if target.identities_only else [key for key in held if key not in chosen]
    yield from _from_agent(attempt, chosen)
    for path in target.key_files:
        if _public_half(path) not in attempt.offered:
            yield from _from_file(attempt, path)
    yield from _from_agent(attempt, others)


def _from_agent(
    attempt: _Attempt, keys: list[paramiko.AgentKey]
) -> Iterator[tuple[str, paramiko.PKey]]:
    for key in keys:
        if key.blob not in attempt.offered:
            attempt.offered.add(key.blob)
            name = key.comment or HostKey(key.name, key.blob).fingerprint
            yield f"agent key {name}", key


def _from_file(attempt: _Attempt, path: str) -> Iterator[tuple[str, paramiko.PKey]]:
    try:
        key = _load(attempt, path, _text(path))
    except FileNotFoundError:
        return
    except _SkippedError as error:
        attempt.tried.append(f"{path} ({error})")
        attempt.hints.append(error.hint)
        return
    for certificate in (f"{path}-cert.pub", *attempt.target.certificates):
        with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
            key.load_certificate(read_file(certificate).decode().strip())
            yield f"certificate {certificate}", key
            key.public_blob = None
    if key.asbytes() not in attempt.offered:
        attempt.offered.add(key.asbytes())
        yield f"key {path}", key


def _load(attempt: _Attempt, path: str, text: str) -> paramiko.PKey:
    try:
        return _parse(text, None)
    except paramiko.PasswordRequiredException:
        pass
    if attempt.ask is None:
        raise _SkippedError("encrypted", f"unlock it with `ssh-add {path}`")
    try:
        return _parse(text, attempt.ask(f"Passphrase for {path}: "))
    except (_SkippedError, paramiko.PasswordRequiredException) as error:
        raise _SkippedError("wrong passphrase", "try again, or use `ssh-add`") from error


def _parse(text: str, passphrase: str | None) -> paramiko.PKey:
    kinds = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    encrypted = None
    for kind in kinds:
        try:
            return _parse_as(kind, text, passphrase)
        except paramiko.PasswordRequiredException as error:
            encrypted = error
        except (paramiko.SSHException, ValueError, IndexError, TypeError, AssertionError):
            continue
    if encrypted is not None:
        raise encrypted
    raise _SkippedError(
        "not a private key that can be read" if "PRIVATE KEY" in text else "not a private key",
        "make one with `ssh-keygen -t ed25519`, or correct identity_file",
    )


def _parse_as(kind: type[paramiko.PKey], text: str, passphrase: str | None) -> paramiko.PKey:
    key: paramiko.PKey = kind.from_private_key(io.StringIO(text), password=passphrase)
    return key


def _check_required(target: Target, path: str) -> None:
    """Refuse a key file named in the spec that cannot be used, before anything else is tried."""
    try:
        _text(path)
    except FileNotFoundError:
        raise AuthError(
            f"there is no key file {path}", where=target.name, hint="correct identity_file"
        ) from None
    except _SkippedError as error:
        raise AuthError(f"key file {path}: {error}", where=target.name, hint=error.hint) from error


def _text(path: str) -> str:
    """Return the text of a private key's file. Raises FileNotFoundError or _SkippedError."""
    try:
        text = read_file(path).decode("utf-8", "surrogateescape")
        status = Path(path).stat()
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise _SkippedError("a directory", "name the private key in it") from error
    except OSError as error:
        raise _SkippedError(
            f"cannot be read: {error.strerror}", "name a file that you may read"
        ) from error
    if text.startswith(_PUBLIC):
        private = path.removesuffix(".pub") if path.endswith(".pub") else "the file without .pub"
        raise _SkippedError("a public key", f"name the private one: {private}")
    ours = os.name == "posix" and status.st_uid == os.getuid()
    if ours and status.st_mode & 0o077:
        raise _SkippedError("readable by others", f"chmod 600 {path}")
    return text


def _public_half(path: str) -> bytes:
    """Return the public key beside a private one, or b"" where it cannot be told."""
    for name in (f"{path}.pub", path):
        with contextlib.suppress(OSError, ValueError):
            return paramiko.pkey.PublicBlob.from_string(read_file(name).decode()).key_blob
    return b""
