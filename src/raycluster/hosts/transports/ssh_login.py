"""Logs in: which keys are tried, in which order, and what to say when none was taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paramiko

from raycluster.core.errors import AuthError, BeyondLibraryError
from raycluster.hosts.transports.ssh_agent import LoginAgent
from raycluster.hosts.transports.ssh_attempt import Ask, LoginAttempt, LoginKey, SkippedKeyError
from raycluster.hosts.transports.ssh_hostkeys import HostKey
from raycluster.hosts.transports.ssh_key_files import (
    CERTIFIED,
    KeyFile,
    certificates_of,
    check_required,
    key_kind,
    plain_key,
    private_key_text,
    public_half,
)
from raycluster.hosts.transports.ssh_paramiko import Connection
from raycluster.hosts.transports.ssh_target import SshTarget

_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_ONLY_SSH = ("gssapi-with-mic", "gssapi-keyex")


def log_in(connection: Connection, target: SshTarget, ask: Ask | None) -> None:
    """Authenticate with the agent and key files of a target. Raises AuthError.

    `ask` is called with a prompt for the passphrase of an encrypted key that no agent holds.
    """
    attempt = LoginAttempt(target, ask)
    with contextlib.closing(LoginAgent(attempt)) as agent:
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


def _accepted_late(connection: Connection, attempt: LoginAttempt) -> bool:
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
    connection: Connection, attempt: LoginAttempt, key: LoginKey, algorithms: tuple[str, ...]
) -> bool:
    try:
        return any(_taken(connection, attempt, key, algorithm) for algorithm in algorithms)
    except SkippedKeyError as error:
        attempt.tried[-1] += f" ({error})"
        attempt.hints.append(error.hint)
    except paramiko.BadAuthenticationType as error:
        raise _refused(attempt, error.allowed_types) from error
    except (paramiko.SSHException, EOFError, OSError, ValueError) as error:
        if not connection.alive:
            raise _cut_off(attempt) from error
    return False


def _taken(connection: Connection, attempt: LoginAttempt, key: LoginKey, algorithm: str) -> bool:
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
    kind = key_kind(blob)
    plain = kind.removesuffix(CERTIFIED)
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


def _refused(attempt: LoginAttempt, allowed: list[str]) -> AuthError:
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


def _cut_off(attempt: LoginAttempt) -> AuthError:
    return AuthError(
        f"the host closed the connection while user '{attempt.target.user}' was "
        f"logging in: tried {'; '.join(attempt.tried)}",
        where=attempt.target.name,
        hint="if these are too many keys, set identity_file and `IdentitiesOnly yes` for the host",
    )


def _keys(attempt: LoginAttempt, agent: LoginAgent) -> Iterator[LoginKey]:
    """Yield keys as ssh does: chosen ones that the agent holds, files, then the agent's others.

    Files that nobody named come last, so that they use up none of the host's MaxAuthTries.
    """
    target = attempt.target
    if target.required_key is not None:
        check_required(target, target.required_key)
    held = agent.keys
    public = {public_half(path) for path in target.key_files}
    chosen = [key for key in held if plain_key(key.blob) in public]
    others = [] if target.identities_only else [key for key in held if key not in chosen]
    yield from _from_agent(attempt, agent, chosen)
    if target.default_keys:
        yield from _from_agent(attempt, agent, others)
    for path in target.key_files:
        if public_half(path) not in attempt.offered:
            yield from _from_file(attempt, path)
    yield from _from_agent(attempt, agent, others)


def _from_agent(
    attempt: LoginAttempt, agent: LoginAgent, keys: list[paramiko.AgentKey]
) -> Iterator[LoginKey]:
    target = attempt.target
    files = (*(f"{path}-cert.pub" for path in target.key_files), *target.certificates)
    for key in keys:
        name = key.comment or HostKey(key.name, key.blob).fingerprint

        def sign(algorithm: str, data: bytes, name: str = name, blob: bytes = key.blob) -> bytes:
            return agent.sign(name, blob, algorithm, data)

        for path, blob in certificates_of(files, key.blob):
            if blob not in attempt.offered:
                attempt.offered.add(blob)
                yield LoginKey(f"certificate {path} with agent key {name}", blob, sign, True)
        if key.blob not in attempt.offered:
            attempt.offered.add(key.blob)
            yield LoginKey(f"agent key {name}", key.blob, sign, True)


def _from_file(attempt: LoginAttempt, path: str) -> Iterator[LoginKey]:
    try:
        text = private_key_text(path)
        file = KeyFile(attempt, path, text)
    except FileNotFoundError:
        return
    except SkippedKeyError as error:
        attempt.tried.append(f"{path} ({error})")
        attempt.hints.append(error.hint)
        return
    for name, blob in certificates_of(
        (f"{path}-cert.pub", *attempt.target.certificates), file.blob
    ):
        if blob not in attempt.offered:
            attempt.offered.add(blob)
            yield LoginKey(f"certificate {name}", blob, file.sign, file.needs_person)
    if file.blob not in attempt.offered:
        attempt.offered.add(file.blob)
        yield LoginKey(f"key {path}", file.blob, file.sign, file.needs_person)
