"""Keys in files, public and private: read, unlocked with a passphrase, and used to sign."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import paramiko

from raycluster.core.errors import AuthError
from raycluster.hosts.transports.ssh_attempt import LoginAttempt, SkippedKeyError
from raycluster.hosts.transports.ssh_config import read_file
from raycluster.hosts.transports.ssh_target import SshTarget

CERTIFIED = "-cert-v01@openssh.com"
_OPENSSH_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"


def public_half(path: str) -> bytes:
    """Return the public key of a private one's file, or b"" where it cannot be told."""
    for name in (f"{path}.pub", path):
        with contextlib.suppress(OSError, ValueError):
            return key_of_public(read_file(name).decode())
    with contextlib.suppress(OSError, ValueError):
        return key_of_private(read_file(path).decode())
    return b""


def key_of_public(line: str) -> bytes:
    """Return the key of "KIND BASE64 comment". Raises ValueError for another text."""
    kind, blob = line.split()[:2]
    key = base64.b64decode(blob, validate=True)
    if key_kind(key) != kind:
        raise ValueError(line)
    return key


def key_of_private(text: str) -> bytes:
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


def certificates_of(paths: tuple[str, ...], key: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the certificates of a key among files: their fields begin, after a nonce, as its own.

    The kind of key of a certificate's name is the key's.
    """
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            blob = key_of_public(read_file(path).decode())
            if key_kind(blob).endswith(CERTIFIED) and plain_key(blob) == key:
                yield path, blob


def plain_key(blob: bytes) -> bytes:
    """Return the public key that a certificate is about, and any other key as it is."""
    kind = key_kind(blob)
    if not kind.endswith(CERTIFIED):
        return blob
    plain = kind.removesuffix(CERTIFIED)
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


def key_kind(blob: bytes) -> str:
    return _first(blob).decode("ascii", "replace")


def _first(fields: bytes) -> bytes:
    return fields[4 : 4 + int.from_bytes(fields[:4], "big")]


def _after(fields: bytes) -> bytes:
    return fields[4 + int.from_bytes(fields[:4], "big") :]


_PUBLIC = ("ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC KEY")


class KeyFile:
    """A private key's file, opened for as long as nobody has to give its passphrase."""

    def __init__(self, attempt: LoginAttempt, path: str, text: str) -> None:
        self._attempt, self._path, self._text = attempt, path, text
        self._key: paramiko.PKey | None = None
        self.blob = key_of_private(text)
        self._on_token = key_kind(self.blob).startswith("sk-")
        if not self._on_token:
            self._open(self.blob or public_half(path))
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
            raise SkippedKeyError("encrypted", f"unlock it with `ssh-add {self._path}`")
        try:
            return _parse(self._text, passphrase)
        except (SkippedKeyError, paramiko.PasswordRequiredException) as error:
            raise SkippedKeyError("wrong passphrase", "try again, or use `ssh-add`") from error

    def sign(self, algorithm: str, data: bytes) -> bytes:
        if self._on_token:
            self._attempt.for_ssh = self._path
            raise SkippedKeyError(
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
    raise SkippedKeyError(
        "not a readable private key" if "PRIVATE KEY" in text else "not a private key",
        "create one with `ssh-keygen -t ed25519`, or correct identity_file",
    )


def _parse_as(kind: type[paramiko.PKey], text: str, passphrase: str | None) -> paramiko.PKey:
    key: paramiko.PKey = kind.from_private_key(io.StringIO(text), password=passphrase)
    return key


def check_required(target: SshTarget, path: str) -> None:
    """Refuse a key file named in the spec that cannot be used, before anything else is tried."""
    try:
        private_key_text(path)
    except FileNotFoundError:
        raise AuthError(
            f"there is no key file {path}", where=target.name, hint="correct identity_file"
        ) from None
    except SkippedKeyError as error:
        raise AuthError(f"key file {path}: {error}", where=target.name, hint=error.hint) from error


def private_key_text(path: str) -> str:
    """Return the text of a private key's file. Raises FileNotFoundError or SkippedKeyError."""
    try:
        text = read_file(path).decode("utf-8", "surrogateescape")
        status = Path(path).stat()
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise SkippedKeyError("a directory", "use the private key in it") from error
    except OSError as error:
        raise SkippedKeyError(
            f"cannot be read: {error.strerror}", "use a file that you can read"
        ) from error
    if text.startswith(_PUBLIC):
        private = path.removesuffix(".pub") if path.endswith(".pub") else "the file without .pub"
        raise SkippedKeyError("a public key", f"use the private one: {private}")
    ours = os.name == "posix" and status.st_uid == os.getuid()
    if ours and status.st_mode & 0o077:
        raise SkippedKeyError("readable by others", f"chmod 600 {path}")
    return text
