"""Public keys and certificates as OpenSSH writes them: fields with their length before them."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator

from raycluster.hosts.transports.ssh_files import read_file

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
