"""Knows which host keys may be trusted: known_hosts files, pins, and what to say when not."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raycluster.errors import HostKeyError
from raycluster.transports.ssh_patterns import matches
from raycluster.transports.ssh_target import Target

_LOCK_SECONDS = 10.0


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


@dataclass(frozen=True)
class KnownHost:
    """One readable line of a known_hosts file; `marker` is "", "@revoked" or "@cert-authority"."""

    file: str
    line: int
    marker: str
    patterns: tuple[str, ...]
    key: HostKey

    def names(self, host: str) -> bool:
        """Tell whether the line is about a host, written `host` or `[host]:port`."""
        if len(self.patterns) == 1 and self.patterns[0].startswith("|1|"):
            return _hash_matches(self.patterns[0], host)
        return matches(self.patterns, host)


def _hash_matches(pattern: str, host: str) -> bool:
    _, _, salt, digest = [*pattern.split("|"), "", ""][:4]
    try:
        expected = base64.b64decode(digest, validate=True)
        found = hmac.new(base64.b64decode(salt, validate=True), host.encode(), hashlib.sha1)
    except binascii.Error:
        return False
    return hmac.compare_digest(found.digest(), expected)


@dataclass(frozen=True)
class KnownHosts:
    """The lines of some known_hosts files that are about one host."""

    trusted: tuple[KnownHost, ...]
    portless: tuple[KnownHost, ...]
    revoked: tuple[KnownHost, ...]
    authorities: tuple[KnownHost, ...]
    unreadable: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The key types to ask the host for, so that it presents a key that is known."""
        return tuple(dict.fromkeys(entry.key.kind for entry in (*self.trusted, *self.portless)))


def known_hosts(target: Target) -> KnownHosts:
    """Read what the known_hosts files say about a target; files that do not exist say nothing."""
    unreadable: list[str] = []
    entries = [
        entry
        for path in (*target.known_hosts, *target.global_known_hosts)
        for entry in _entries(path, unreadable)
    ]
    name, bare = target.known_as, (target.key_alias or target.host).lower()
    mine = [entry for entry in entries if entry.names(name)]
    by_host = [entry for entry in entries if entry not in mine and entry.names(bare)]
    return KnownHosts(
        trusted=tuple(entry for entry in mine if not entry.marker),
        portless=tuple(entry for entry in by_host if not entry.marker),
        revoked=tuple(e for e in (*mine, *by_host) if e.marker == "@revoked"),
        authorities=tuple(entry for entry in mine if entry.marker == "@cert-authority"),
        unreadable=tuple(unreadable),
    )


def _entries(path: str, unreadable: list[str]) -> Iterator[KnownHost]:
    try:
        lines = Path(path).read_text("utf-8", "surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        unreadable.append(f"{path} ({error.strerror})")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = _entry(path, number, line.split())
        if entry is None:
            unreadable.append(f"{path}:{number}")
        else:
            yield entry


def _entry(path: str, number: int, words: list[str]) -> KnownHost | None:
    marker = words.pop(0) if words[0].startswith("@") else ""
    if marker not in ("", "@revoked", "@cert-authority") or len(words) < 3:
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except binascii.Error:
        return None
    kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")
    if kind != words[1]:
        return None
    patterns = tuple(words[0].split(","))
    # Names in known_hosts are lower case; what a person typed there may not be.
    lowered = patterns if patterns[0].startswith("|") else tuple(p.lower() for p in patterns)
    return KnownHost(path, number, marker, lowered, HostKey(kind, blob))


def verify(target: Target, key: HostKey) -> None:
    """Return when the key may be trusted, recording it when `accept-new` says so.

    Raises HostKeyError, which names the fingerprints and the file and line that disagree.
    """
    known = known_hosts(target)
    for entry in known.revoked:
        if entry.key == key:
            raise HostKeyError(
                f"its host key {key.fingerprint} is revoked by {entry.file}:{entry.line}",
                where=target.name,
                hint="do not connect; ask whoever revoked the key",
            )
    if target.options.host_key is not None:
        _verify_pin(target, key)
    elif any(entry.key == key for entry in (*known.trusted, *known.portless)):
        return
    elif known.trusted:
        raise _changed(target, key, known.trusted)
    elif target.options.host_keys == "accept-new" and not known.authorities:
        _record(target, key)
    else:
        raise _unknown(target, key, known)


def _verify_pin(target: Target, key: HostKey) -> None:
    pin = (target.options.host_key or "").rstrip("=")
    if key.fingerprint != pin:
        raise HostKeyError(
            f"its host key is {key.fingerprint} ({key.kind}), but the spec pins {pin}",
            where=target.name,
            hint="if the host was reinstalled, correct host_key; if not, somebody is in between",
        )


def _changed(target: Target, key: HostKey, entries: Sequence[KnownHost]) -> HostKeyError:
    entry = next((e for e in entries if e.key.kind == key.kind), entries[0])
    name = shlex.quote(target.known_as)
    return HostKeyError(
        f"its host key changed: {entry.file}:{entry.line} says {entry.key.fingerprint} "
        f"({entry.key.kind}), the host presents {key.fingerprint} ({key.kind})",
        where=target.name,
        hint="if the host was reinstalled, forget the old key with "
        f"`ssh-keygen -R {name} -f {shlex.quote(entry.file)}`; if not, somebody is in between",
    )


def _unknown(target: Target, key: HostKey, known: KnownHosts) -> HostKeyError:
    what = f"its host key is unknown: {key.fingerprint} ({key.kind})"
    if known.authorities:
        line = f"{known.authorities[0].file}:{known.authorities[0].line}"
        what += f"; {line} trusts a certificate authority, and host certificates are not supported"
    if known.unreadable:
        what += f"; could not be read: {', '.join(known.unreadable[:3])}"
    file = target.known_hosts[0] if target.known_hosts else "~/.ssh/known_hosts"
    scan = f"ssh-keyscan -p {target.port} {target.host} >> {shlex.quote(file)}"
    if target.jumps or target.key_alias:
        scan = f"log in once with ssh to record it in {file}"
    return HostKeyError(
        what,
        where=target.name,
        hint=f"compare the fingerprint with the host's own, then pin it in the spec "
        f'(host_key = "{key.fingerprint}"), record it ({scan}), '
        'or set host_keys = "accept-new"',
    )


def _record(target: Target, key: HostKey) -> None:
    """Append a line in one write under a lock, so that runs beside this one lose nothing."""
    if not target.known_hosts:
        raise HostKeyError("no known_hosts file to record its key in", where=target.name)
    path = Path(target.known_hosts[0])
    line = f"{target.known_as} {key.kind} {base64.b64encode(key.blob).decode()}\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("r+b") as file:
            _lock(file.fileno())
            before = file.read()
            late = known_hosts(target).trusted
            if late and all(entry.key != key for entry in late):
                raise _changed(target, key, late)
            if not late:
                gap = "" if not before or before.endswith(b"\n") else "\n"
                file.write((gap + line).encode())
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
