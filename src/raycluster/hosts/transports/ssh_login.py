"""Logs in: which keys are tried, in which order, and what to say when none was taken."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from raycluster.core.errors import AuthError, BeyondLibraryError
from raycluster.hosts.transports.ssh_files import read_file
from raycluster.hosts.transports.ssh_hostkeys import HostKey
from raycluster.hosts.transports.ssh_paramiko import Agent, Connection
from raycluster.hosts.transports.ssh_target import SshTarget

Ask = Callable[[str], str]
"""Returns the answer to a prompt; `tell`, where it has that, takes a line of progress."""

_PUBLIC = ("ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC KEY")
_OPENSSH_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"
_CERTIFIED = "-cert-v01@openssh.com"
_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_AGENT_SECONDS = 10.0
_SIGN_SECONDS = 30.0
"""For a touch or a confirmation; security keys themselves wait as long."""
_QUIET_SECONDS = 1.0
"""After which a person is told what is waited for."""
_ONLY_SSH = ("gssapi-with-mic", "gssapi-keyex")
_touching = threading.Lock()
"""A person touches one key at a time, however many hosts are being reached."""


class _SkippedError(Exception):
    """A key that cannot be used; the text says why, `hint` what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True)
class _Key:
    """A public key or certificate, and what signs for it."""

    label: str
    blob: bytes
    sign: Callable[[str, bytes], bytes]
    """Takes the signature's algorithm and what to sign; raises _SkippedError."""
    asks_first: bool
    """Whether signing needs a person, so that the host is asked beforehand if it takes the key."""


@dataclass
class _Attempt:
    target: SshTarget
    ask: Ask | None
    tried: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    offered: set[bytes] = field(default_factory=set)
    rest: list[tuple[int, _Key, tuple[str, ...]]] = field(default_factory=list)
    """Places among `tried` of RSA keys that were refused, and what they were not tried with."""
    agent_hangs: int = 0
    for_ssh: str = ""
    """What the host would take, and only OpenSSH's own `ssh` can give."""


def log_in(connection: Connection, target: SshTarget, ask: Ask | None) -> None:
    """Authenticate with the agent and key files of a target. Raises AuthError.

    `ask` is called with a prompt for the passphrase of an encrypted key that no agent holds.
    """
    attempt = _Attempt(target, ask)
    with contextlib.closing(_Agent(attempt)) as agent:
        for key in _keys(attempt, agent):
            attempt.tried.append(key.label)
            try:
                algorithms = _algorithms(connection, key.blob)
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise _cut_off(attempt) from error
            if _accepted(connection, attempt, key, algorithms[:1]):
                return
            if len(algorithms) > 1:
                attempt.rest.append((len(attempt.tried) - 1, key, algorithms[1:]))
        allowed = _allowed(connection, target)
        if allowed is None or _accepted_late(connection, attempt):
            return
    raise _refused(attempt, allowed)


def _accepted_late(connection: Connection, attempt: _Attempt) -> bool:
    """Try RSA keys in the other ways, for which each is one more of the host's MaxAuthTries."""
    try:
        for _, key, algorithms in attempt.rest:
            if _accepted(connection, attempt, key, algorithms):
                return True
        for place, key, _ in attempt.rest:
            if connection.takes_key(attempt.target.user, "ssh-rsa", key.blob):
                attempt.tried[place] += " (which the host accepts only with SHA-1)"
                attempt.hints.append(
                    "use an ed25519 key, or allow rsa-sha2-512 in PubkeyAcceptedAlgorithms of "
                    "sshd_config"
                )
    except (AuthError, paramiko.SSHException, EOFError, OSError):
        if connection.alive:
            raise
    return False


def _accepted(
    connection: Connection, attempt: _Attempt, key: _Key, algorithms: tuple[str, ...]
) -> bool:
    try:
        return any(_taken(connection, attempt, key, algorithm) for algorithm in algorithms)
    except _SkippedError as error:
        attempt.tried[-1] += f" ({error})"
        attempt.hints.append(error.hint)
    except paramiko.BadAuthenticationType as error:
        raise _refused(attempt, error.allowed_types) from error
    except (paramiko.SSHException, EOFError, OSError, ValueError) as error:
        if not connection.alive:
            raise _cut_off(attempt) from error
    return False


def _taken(connection: Connection, attempt: _Attempt, key: _Key, algorithm: str) -> bool:
    user = attempt.target.user
    try:
        if key.asks_first and not connection.takes_key(user, algorithm, key.blob):
            return False
        left = connection.log_in_with(
            user, algorithm, key.blob, lambda data: key.sign(algorithm, data)
        )
    except paramiko.BadAuthenticationType:
        raise
    except paramiko.AuthenticationException:
        if not connection.alive:
            raise
        return False
    if left and "publickey" not in left:
        raise AuthError(
            f"the key was accepted for user '{user}', but the host also requires {', '.join(left)}",
            where=attempt.target.name,
            hint="allow login with only this key on the host (AuthenticationMethods in "
            "sshd_config)",
        )
    if left:
        attempt.tried[-1] += " (accepted, but the host requires one more)"
    return not left


def _algorithms(connection: Connection, blob: bytes) -> tuple[str, ...]:
    """Return the signature algorithms to try for a key, those that the host named first."""
    kind = _kind(blob)
    plain = kind.removesuffix(_CERTIFIED)
    if plain != "ssh-rsa":
        return (kind,)
    told = connection.signature_algorithms
    ordered = sorted(_RSA, key=lambda name: name not in told)
    return tuple(name + kind[len(plain) :] for name in ordered)


def _allowed(connection: Connection, target: SshTarget) -> list[str] | None:
    """Return what the host lets a user log in with, None when it asks for nothing."""
    try:
        connection.log_in_without(target.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except (paramiko.SSHException, EOFError, OSError):
        return []
    return None


def _refused(attempt: _Attempt, allowed: list[str]) -> AuthError:
    target = attempt.target
    tried = f"tried {'; '.join(attempt.tried)}" if attempt.tried else "there was no key to try"
    accepts = f"; it accepts {', '.join(allowed)}" if allowed else ""
    usual = (
        f"add your public key to .ssh/authorized_keys of '{target.user}' there, or correct user "
        "and identity_file"
    )
    kind = BeyondLibraryError if attempt.for_ssh or _for_ssh(target, allowed) else AuthError
    return kind(
        f"the host rejected user '{target.user}': {tried}{accepts}",
        where=target.name,
        hint="; ".join(dict.fromkeys([*attempt.hints, usual])),
    )


def _for_ssh(target: SshTarget, allowed: list[str]) -> bool:
    """Tell whether the ssh config names a way in that the host knows and only `ssh` can go."""
    return bool(
        (target.gssapi and not {*_ONLY_SSH}.isdisjoint(allowed))
        or (target.pkcs11 and "publickey" in allowed)
    )


def _cut_off(attempt: _Attempt) -> AuthError:
    return AuthError(
        f"the host closed the connection while user '{attempt.target.user}' was "
        f"logging in: tried {'; '.join(attempt.tried)}",
        where=attempt.target.name,
        hint="if these are too many keys, set identity_file and `IdentitiesOnly yes` for the host",
    )


class _Agent:
    """The agent of a target; connected anew after a signature that never came."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt
        self._path = attempt.target.agent if hasattr(socket, "AF_UNIX") else None
        self._agent: Agent | None = None
        self.keys = self._connected().get_keys() if self._path else ()

    def _connected(self) -> Agent | _NoAgent:
        if self._agent is None and self._path is not None:
            wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            wire.settimeout(_AGENT_SECONDS)
            try:
                wire.connect(self._path)
                self._agent = Agent(wire)
            except (OSError, paramiko.SSHException, ValueError) as error:
                wire.close()
                why = f"no response within {_AGENT_SECONDS:g} s"
                if not isinstance(error, TimeoutError):
                    why = getattr(error, "strerror", None) or str(error)
                self._attempt.tried.append(f"agent {self._path} ({why})")
                self._path = None
        return self._agent or _NoAgent()

    def sign(self, name: str, blob: bytes, algorithm: str, data: bytes) -> bytes:
        """Return the agent's signature. Raises _SkippedError where it gives none."""
        touched = _kind(blob).startswith("sk-")
        with _touching if touched else contextlib.nullcontext(), self._told(name, touched):
            try:
                agent = self._connected()
                signature = agent.sign(blob, algorithm, data, _SIGN_SECONDS)
            except TimeoutError:
                self._agent, hung = None, self._agent
                if hung:
                    hung.close()
                if self._attempt.agent_hangs:
                    self._path = None
                self._attempt.agent_hangs += 1
                signature, why = None, f"the agent did not sign within {_SIGN_SECONDS:g} s"
            except (OSError, paramiko.SSHException) as error:
                self._agent, why, signature = (
                    None,
                    f"the agent closed the connection: {error}",
                    None,
                )
            else:
                why = "the host accepts it, but the agent did not sign"
        if signature is None:
            raise _SkippedError(
                why,
                f"touch or confirm the key {name} when prompted, or unlock the agent (ssh-add -X)",
            )
        return signature

    @contextlib.contextmanager
    def _told(self, name: str, touched: bool) -> Iterator[None]:
        """Say what is waited for, at once where it is surely a person."""
        tell = getattr(self._attempt.ask, "tell", None)
        if tell is None:
            yield
            return
        text = (
            f"{self._attempt.target.name}: waiting up to {_SIGN_SECONDS:g} s for the agent to sign "
            f"with key {name}: touch the security key, or confirm in the agent's prompt"
        )
        timer = threading.Timer(0.0 if touched else _QUIET_SECONDS, tell, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


class _NoAgent:
    def get_keys(self) -> tuple[paramiko.AgentKey, ...]:
        return ()

    def sign(self, blob: bytes, algorithm: str, data: bytes, seconds: float) -> None:
        """Sign nothing, as an agent that refuses."""


def _keys(attempt: _Attempt, agent: _Agent) -> Iterator[_Key]:
    """Yield keys as ssh does: chosen ones that the agent holds, files, then the agent's others.

    Files that nobody named come last, so that they use up none of the host's MaxAuthTries.
    """
    target = attempt.target
    if target.required_key is not None:
        _check_required(target, target.required_key)
    held = agent.keys
    public = {_public_half(path) for path in target.key_files}
    chosen = [key for key in held if _plain(key.blob) in public]
    others = [] if target.identities_only else [key for key in held if key not in chosen]
    yield from _from_agent(attempt, agent, chosen)
    if target.default_keys:
        yield from _from_agent(attempt, agent, others)
    for path in target.key_files:
        if _public_half(path) not in attempt.offered:
            yield from _from_file(attempt, path)
    yield from _from_agent(attempt, agent, others)


def _from_agent(attempt: _Attempt, agent: _Agent, keys: list[paramiko.AgentKey]) -> Iterator[_Key]:
    target = attempt.target
    files = (*(f"{path}-cert.pub" for path in target.key_files), *target.certificates)
    for key in keys:
        name = key.comment or HostKey(key.name, key.blob).fingerprint

        def sign(algorithm: str, data: bytes, name: str = name, blob: bytes = key.blob) -> bytes:
            return agent.sign(name, blob, algorithm, data)

        for path, blob in _certificates(files, key.blob):
            if blob not in attempt.offered:
                attempt.offered.add(blob)
                yield _Key(f"certificate {path} with agent key {name}", blob, sign, True)
        if key.blob not in attempt.offered:
            attempt.offered.add(key.blob)
            yield _Key(f"agent key {name}", key.blob, sign, True)


def _from_file(attempt: _Attempt, path: str) -> Iterator[_Key]:
    try:
        text = _text(path)
        file = _File(attempt, path, text)
    except FileNotFoundError:
        return
    except _SkippedError as error:
        attempt.tried.append(f"{path} ({error})")
        attempt.hints.append(error.hint)
        return
    for name, blob in _certificates((f"{path}-cert.pub", *attempt.target.certificates), file.blob):
        if blob not in attempt.offered:
            attempt.offered.add(blob)
            yield _Key(f"certificate {name}", blob, file.sign, file.needs_person)
    if file.blob not in attempt.offered:
        attempt.offered.add(file.blob)
        yield _Key(f"key {path}", file.blob, file.sign, file.needs_person)


class _File:
    """A private key's file, opened for as long as nobody has to give its passphrase."""

    def __init__(self, attempt: _Attempt, path: str, text: str) -> None:
        self._attempt, self._path, self._text = attempt, path, text
        self._key: paramiko.PKey | None = None
        self.blob = _of_private(text)
        self._on_token = _kind(self.blob).startswith("sk-")
        if not self._on_token:
            self._open(self.blob or _public_half(path))
        self.needs_person = self._key is None

    def _open(self, public: bytes) -> None:
        try:
            self._key = _parse(self._text, None)
        except paramiko.PasswordRequiredException:
            if public and self._attempt.ask:  # nobody is asked in vain
                self.blob = public
                return
            self._key = self._unlocked()
        self.blob = self._key.asbytes()

    def _unlocked(self) -> paramiko.PKey:
        ask = self._attempt.ask
        passphrase = ask(f"Passphrase for {self._path}: ") if ask else ""
        if not passphrase:
            raise _SkippedError("encrypted", f"unlock it with `ssh-add {self._path}`")
        try:
            return _parse(self._text, passphrase)
        except (_SkippedError, paramiko.PasswordRequiredException) as error:
            raise _SkippedError("wrong passphrase", "try again, or use `ssh-add`") from error

    def sign(self, algorithm: str, data: bytes) -> bytes:
        if self._on_token:
            self._attempt.for_ssh = self._path
            raise _SkippedError(
                "the host accepts it, but only OpenSSH can use its security key",
                f"add it to an agent: `ssh-add {self._path}`",
            )
        if self._key is None:
            self._key = self._unlocked()
        return bytes(self._key.sign_ssh_data(data, algorithm).asbytes())


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
        "not a readable private key" if "PRIVATE KEY" in text else "not a private key",
        "create one with `ssh-keygen -t ed25519`, or correct identity_file",
    )


def _parse_as(kind: type[paramiko.PKey], text: str, passphrase: str | None) -> paramiko.PKey:
    key: paramiko.PKey = kind.from_private_key(io.StringIO(text), password=passphrase)
    return key


def _check_required(target: SshTarget, path: str) -> None:
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
        raise _SkippedError("a directory", "use the private key in it") from error
    except OSError as error:
        raise _SkippedError(
            f"cannot be read: {error.strerror}", "use a file that you can read"
        ) from error
    if text.startswith(_PUBLIC):
        private = path.removesuffix(".pub") if path.endswith(".pub") else "the file without .pub"
        raise _SkippedError("a public key", f"use the private one: {private}")
    ours = os.name == "posix" and status.st_uid == os.getuid()
    if ours and status.st_mode & 0o077:
        raise _SkippedError("readable by others", f"chmod 600 {path}")
    return text


def _public_half(path: str) -> bytes:
    """Return the public key of a private one's file, or b"" where it cannot be told."""
    for name in (f"{path}.pub", path):
        with contextlib.suppress(OSError, ValueError):
            return _of_public(read_file(name).decode())
    with contextlib.suppress(OSError, ValueError):
        return _of_private(read_file(path).decode())
    return b""


def _of_public(line: str) -> bytes:
    """Return the key of "KIND BASE64 comment". Raises ValueError for another text."""
    kind, blob = line.split()[:2]
    key = base64.b64decode(blob, validate=True)
    if _kind(key) != kind:
        raise ValueError(line)
    return key


def _of_private(text: str) -> bytes:
    """Return the public key that a file of OpenSSH's shows even if it is encrypted, else b""."""
    _, begin, rest = text.partition(_OPENSSH_KEY)
    try:
        content = base64.b64decode("".join(rest.partition("-----END")[0].split())) if begin else b""
    except binascii.Error:
        return b""
    fields = content.removeprefix(b"openssh-key-v1\0")
    if fields == content:
        return b""
    for _ in range(3):  # cipher, key derivation, its options
        fields = _after(fields)
    return _first(fields[4:])  # behind the number of keys


def _certificates(paths: tuple[str, ...], key: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the certificates of a key among files: their fields begin, after a nonce, as its own.

    The kind of key of a certificate's name is the key's.
    """
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            blob = _of_public(read_file(path).decode())
            if _kind(blob).endswith(_CERTIFIED) and _plain(blob) == key:
                yield path, blob


def _plain(blob: bytes) -> bytes:
    """Return the public key that a certificate is about, and any other key as it is."""
    kind = _kind(blob)
    if not kind.endswith(_CERTIFIED):
        return blob
    plain = kind.removesuffix(_CERTIFIED)
    plain += "@openssh.com" if plain.startswith("sk-") else ""
    fields = rest = _after(_after(blob))  # behind the kind and the nonce
    for _ in range(_FIELDS.get(plain.partition("-nistp")[0], 0)):
        rest = _after(rest)
    named = plain.encode()
    return len(named).to_bytes(4, "big") + named + fields[: len(fields) - len(rest)]


_FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2": 3,
}
"""How many fields make a public key, by its kind."""


def _kind(blob: bytes) -> str:
    return _first(blob).decode("ascii", "replace")


def _first(fields: bytes) -> bytes:
    return fields[4 : 4 + int.from_bytes(fields[:4], "big")]


def _after(fields: bytes) -> bytes:
    return fields[4 + int.from_bytes(fields[:4], "big") :]
