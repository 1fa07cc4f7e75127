"""Knows which host keys may be trusted: known_hosts files, pins, and what to say when not.

Decides as OpenSSH does, or more strictly: docs/decisions/host-keys.md says where.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raycluster.core.errors import HostKeyError, UnjudgedKeyError
from raycluster.hosts.transports.ssh_config import lowered, matches, read_file
from raycluster.hosts.transports.ssh_options import SshOptions
from raycluster.hosts.transports.ssh_target import SshTarget

ALGORITHMS = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "rsa-sha2-512": "ssh-rsa",
    "rsa-sha2-256": "ssh-rsa",
}
"""Signature algorithm -> kind of key, in OpenSSH's order."""

_CERTIFIED = "-cert-v01@openssh.com"
_LOCK_SECONDS = 10.0
_KRL = b"SSHKRL\n\0"
_LONGEST_PATTERN = 1022  # ssh takes no part of a line with a longer one
_ODD_NAME = re.compile(r"[\s@?*!,|#]")


@dataclass(frozen=True)
class HostKey:
    """A public key as a host presents it: its algorithm's name and its bytes."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """The form that `ssh-keygen -l` prints."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode()
        return "SHA256:" + digest.rstrip("=")

    @property
    def rsa_bits(self) -> int | None:
        """The length of an RSA key, None for other kinds."""
        if self.kind != "ssh-rsa":
            return None
        rest = self.blob
        for _ in range(3):  # the kind, the exponent, the modulus
            size = int.from_bytes(rest[:4], "big")
            part, rest = rest[4 : 4 + size], rest[4 + size :]
        return int.from_bytes(part, "big").bit_length()


@dataclass(frozen=True)
class KnownHost:
    """A key in a line of a known_hosts file; `marker` is "", "@revoked" or "@cert-authority"."""

    file: str
    line: int
    marker: str
    key: HostKey


@dataclass(frozen=True)
class KnownHosts:
    """The lines of some known_hosts files that are about one name of a host."""

    name: str
    trusted: tuple[KnownHost, ...]
    revoked: tuple[KnownHost, ...]
    authorities: tuple[KnownHost, ...]
    unreadable: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of keys that the host may be asked for, since it is known by them."""
        first: dict[str, HostKey] = {}
        for entry in self.trusted:
            first.setdefault(entry.key.kind, entry.key)
        revoked = {entry.key for entry in self.revoked}
        return tuple(kind for kind, key in first.items() if key not in revoked)


def known_hosts(target: SshTarget, name: str) -> KnownHosts:
    """Read what the known_hosts files of a target say about a name, "host" or "[host]:port".

    Files that do not exist say nothing.
    """
    # Bytes, one character each, which is what a pattern's `?` stands for.
    wanted = name.encode("utf-8", "surrogateescape").decode("latin-1")
    unreadable: list[str] = []
    entries = [
        entry
        for path in (*target.known_hosts, *target.global_known_hosts)
        for entry in _entries(path, wanted, unreadable)
    ]
    return KnownHosts(
        name=name,
        trusted=tuple(entry for entry in entries if not entry.marker),
        revoked=tuple(entry for entry in entries if entry.marker == "@revoked"),
        authorities=tuple(entry for entry in entries if entry.marker == "@cert-authority"),
        unreadable=tuple(unreadable),
    )


def _entries(path: str, name: str, unreadable: list[str]) -> Iterator[KnownHost]:
    try:
        content = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        unreadable.append(f"{path} ({error.strerror})")
        return
    for number, words in _lines(content):
        marker = words.pop(0) if words[0].startswith("@") else ""
        if not words or not _names(words[0], name):
            continue
        key = _key(words[1:])
        if key is None or marker not in ("", "@revoked", "@cert-authority"):
            unreadable.append(f"{path}:{number}")
        else:
            yield KnownHost(path, number, marker, key)


def _lines(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the words of lines that say something; a line ends for ssh where C ends a string."""
    for number, line in enumerate(content.split(b"\n"), 1):
        text = line.partition(b"\0")[0].decode("latin-1").strip(" \t")
        if text and not text.startswith("#"):
            yield number, re.split("[ \t]+", text)


def _names(field: str, name: str) -> bool:
    if field.startswith("|"):
        return field == _hashed(field, name)
    patterns = lowered(field).split(",")
    return matches(patterns, name) and max(map(len, patterns)) <= _LONGEST_PATTERN


def _hashed(field: str, name: str) -> str | None:
    """Return a name as a hash with the salt of `field`, None where that has no salt."""
    kind, _, rest = field[1:].partition("|")
    salt = _decoded(rest.partition("|")[0])
    if kind != "1" or salt is None or len(salt) != hashlib.sha1(usedforsecurity=False).digest_size:
        return None
    digest = hmac.new(salt, name.encode("latin-1"), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


def _key(words: list[str]) -> HostKey | None:
    """Return the key of "KIND BASE64 ...", None for what ssh would not read."""
    blob = _decoded(re.sub(r"[\r\f\v]", "", words[1])) if len(words) > 1 else None
    if not blob:
        return None
    kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("latin-1")
    return HostKey(kind, blob) if ALGORITHMS.get(words[0], words[0]) == kind else None


def _decoded(text: str) -> bytes | None:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # the latter for what is not ASCII
        return None
    return found if base64.b64encode(found).decode() == text else None


def algorithms(target: SshTarget) -> tuple[str, ...]:
    """Return the signature algorithms to offer, so that the host shows a key that is known."""
    said = target.host_key_algorithms or "+"
    allowed = _allowed(said)
    known = known_hosts(target, target.known_as).kinds
    ordered = [name for name in allowed if name in ALGORITHMS]
    # ssh leaves an order of the user's own alone, and one that begins with a known kind.
    if said[0] in "+-" and not (allowed and _kind(allowed[0]) in known):
        ordered.sort(key=lambda name: _kind(name) not in known)
    return tuple(ordered)


def _kind(algorithm: str) -> str:
    return ALGORITHMS[algorithm.removesuffix(_CERTIFIED)]


def _allowed(said: str) -> tuple[str, ...]:
    """Return what HostKeyAlgorithms of the ssh config leaves, certificates included."""
    every = [*(name + _CERTIFIED for name in ALGORITHMS), *ALGORITHMS]
    patterns = said.lstrip("+-^").split(",")
    if said[0] == "-":
        return tuple(name for name in every if not matches(patterns, name))
    wanted = {"+": [*every, *patterns], "^": [*patterns, *every]}.get(said[0], patterns)
    chosen = (name for pattern in wanted for name in every if matches([pattern], name))
    return tuple(dict.fromkeys(chosen))


def verify(target: SshTarget, key: HostKey, address: str = "") -> None:
    """Return when the key may be trusted, recording it when `accept-new` says so.

    `address` is the one that was dialled, "" where something else dials.
    Raises HostKeyError, which names the fingerprints and the file and line that disagree.
    """
    known = known_hosts(target, target.known_as)
    same = target.portless == target.known_as
    portless = known if same else known_hosts(target, target.portless)
    _refuse_listed(target, key)
    for entry in (*known.revoked, *portless.revoked):
        if entry.key == key:
            raise _revoked(target, key, f"{entry.file}:{entry.line}")
    if target.options.host_key is not None:
        _verify_pin(target, key)
        return
    if target.known_hosts_command:
        raise UnjudgedKeyError(
            f"its host key {key.fingerprint} cannot be verified: KnownHostsCommand in the ssh "
            "config is not supported",
            where=target.name,
            hint="compare the fingerprint with the host's own, then pin it in the spec "
            f'(host_key = "{key.fingerprint}"), or set `KnownHostsCommand none` for this host',
        )
    if target.check_host_ip and address:
        _refuse_changed(target, key, known_hosts(target, target.with_port(address)))
    # A line without port counts only where there is none with it.
    if not _refuse_changed(target, key, known) and all(e.key != key for e in portless.trusted):
        if target.options.host_keys != "accept-new" or known.authorities or known.unreadable:
            raise _unknown(target, key, known)
        _record(target, key)


def checked(target: SshTarget) -> SshOptions:
    """Return a target's options for a program that judges host keys as OpenSSH does.

    Raises HostKeyError for a pin that a known_hosts file revokes. `accept-new` becomes `strict`
    where a new line would hide one that may be about the host.
    """
    names = dict.fromkeys((target.known_as, target.portless))
    found = [known_hosts(target, name) for name in names]
    for entry in (entry for known in found for entry in known.revoked):
        if entry.key.fingerprint == (target.options.host_key or "").rstrip("="):
            raise _revoked(target, entry.key, f"{entry.file}:{entry.line}")
    unclear = any(known.authorities or known.unreadable for known in found)
    return replace(target.options, host_keys="strict") if unclear else target.options


def _refuse_changed(target: SshTarget, key: HostKey, known: KnownHosts) -> bool:
    """Tell whether there are lines that say the key; raises where there are only others."""
    if known.trusted and all(entry.key != key for entry in known.trusted):
        raise _changed(target, key, known)
    return bool(known.trusted)


def _refuse_listed(target: SshTarget, key: HostKey) -> None:
    """Refuse what RevokedHostKeys and RequiredRSASize of the ssh config refuse."""
    if key.rsa_bits is not None and key.rsa_bits < target.required_rsa_size:
        raise HostKeyError(
            f"its host key {key.fingerprint} has {key.rsa_bits} bits, and RequiredRSASize is "
            f"{target.required_rsa_size}",
            where=target.name,
            hint="use a longer RSA key on the host, or an ed25519 key",
        )
    if target.revoked_host_keys is None:
        return
    what = f"RevokedHostKeys {target.revoked_host_keys} of the ssh config"
    hint = "correct that file, or the setting: without it, revoked keys cannot be detected"
    try:
        content = read_file(target.revoked_host_keys)
    except OSError as error:
        raise HostKeyError(f"{what}: {error.strerror}", where=target.name, hint=hint) from error
    if content.startswith(_KRL):
        raise UnjudgedKeyError(
            f"{what} is a binary list (KRL), which is not supported",
            where=target.name,
            hint="list the revoked public keys there as text, one per line",
        )
    for number, words in _lines(content):
        listed = _key(words)
        if listed is None:
            raise HostKeyError(
                f"{what}: line {number} is not a public key", where=target.name, hint=hint
            )
        if listed == key:
            raise _revoked(target, key, f"{target.revoked_host_keys}:{number}")


def _revoked(target: SshTarget, key: HostKey, place: str) -> HostKeyError:
    return HostKeyError(
        f"its host key {key.fingerprint} is revoked by {place}",
        where=target.name,
        hint="do not connect; ask whoever revoked the key",
    )


def _verify_pin(target: SshTarget, key: HostKey) -> None:
    pin = (target.options.host_key or "").rstrip("=")
    if key.fingerprint != pin:
        raise HostKeyError(
            f"its host key is {key.fingerprint} ({key.kind}), but the spec pins {pin}",
            where=target.name,
            hint="if the host was reinstalled, correct host_key; if not, this may be a "
            "man-in-the-middle attack",
        )


def _changed(target: SshTarget, key: HostKey, known: KnownHosts) -> HostKeyError:
    entry = next((e for e in known.trusted if e.key.kind == key.kind), known.trusted[0])
    name = shlex.quote(known.name)
    return HostKeyError(
        f"its host key changed: {entry.file}:{entry.line} says {entry.key.fingerprint} "
        f"({entry.key.kind}), the host presents {key.fingerprint} ({key.kind})",
        where=target.name,
        hint="if the host was reinstalled, remove the old key with "
        f"`ssh-keygen -R {name} -f {shlex.quote(entry.file)}`; if not, this may be a "
        "man-in-the-middle attack",
    )


def _unknown(target: SshTarget, key: HostKey, known: KnownHosts) -> HostKeyError:
    what = f"its host key is unknown: {key.fingerprint} ({key.kind})"
    if known.authorities:
        line = f"{known.authorities[0].file}:{known.authorities[0].line}"
        what += f"; {line} trusts a certificate authority, but host certificates are not supported"
    if known.unreadable:
        what += f"; could not be read: {', '.join(known.unreadable[:3])}"
    file = target.known_hosts[0] if target.known_hosts else "~/.ssh/known_hosts"
    scan = f"ssh-keyscan -p {target.port} {target.host} >> {shlex.quote(file)}"
    if target.jumps or target.key_alias:
        scan = f"log in once with ssh to record it in {file}"
    hint = (
        "compare the fingerprint with the host's own, then pin it in the spec "
        f'(host_key = "{key.fingerprint}"), record it ({scan}), '
    )
    if target.options.host_keys == "accept-new":  # and something above forbids it
        hint += "or correct the problem named above"
    else:
        hint += 'or set host_keys = "accept-new"'
    kind = UnjudgedKeyError if known.authorities else HostKeyError
    return kind(what, where=target.name, hint=hint)


def _record(target: SshTarget, key: HostKey) -> None:
    """Append a line in one write under a lock, so that runs beside this one lose nothing."""
    if not target.known_hosts:
        raise HostKeyError("no known_hosts file to record its key in", where=target.name)
    if _ODD_NAME.search(target.known_as):
        raise HostKeyError(
            f"the name {target.known_as!r} is not valid in a known_hosts file",
            where=target.name,
            hint="correct host or HostKeyAlias, or pin the key in the spec (host_key)",
        )
    path = Path(target.known_hosts[0])
    line = f"{target.known_as} {key.kind} {base64.b64encode(key.blob).decode()}\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("r+b") as file:
            _lock(file.fileno())
            before = file.read()
            if not _refuse_changed(target, key, known_hosts(target, target.known_as)):
                gap = "" if not before or before.endswith(b"\n") else "\n"
                file.write((gap + line).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise HostKeyError(
            f"its host key {key.fingerprint} cannot be recorded in {path}: {error.strerror}",
            where=target.name,
            hint="make the file writable, or pin the key in the spec (host_key)",
        ) from error


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: a single short write has to do
        return
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
