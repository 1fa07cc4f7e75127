"""What listens on a host besides loopback, and which of it is the cluster's own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.core.interfaces import Transport
from raycluster.core.untrusted import text_of

MOST = 4 << 20
"""Bytes of an answer that are read."""
_SCRIPT = """[ -r /proc/net/tcp ] && command -v awk >/dev/null || {
  echo "awk and /proc/net/tcp are needed" >&2; exit 1; }
for kind in tcp tcp6 udp udp6; do
  state=0A; case $kind in udp*) state=07;; esac
  awk -v kind=$kind -v state=$state '$4 == state {print kind, $2, $10}' /proc/net/$kind 2>/dev/null
done; true"""
_LINE = re.compile(r"(tcp|udp)6? ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9]{1,20})")
_LOOPBACK = re.compile(r"[0-9A-F]{6}7F|0{24}01000000|0{16}FFFF0000[0-9A-F]{6}7F")


@dataclass(frozen=True)
class OpenPort:
    """A port that takes what comes from other hosts; `inode` is its socket's number."""

    protocol: str
    port: int
    inode: int


def read_listeners(transport: Transport) -> frozenset[OpenPort]:
    """Return what listens on the host at more than loopback. Raises HostError."""
    done = transport.run(("sh", "-c", _SCRIPT))
    text_of(done, "read what listens on the host", transport.address)
    return listeners_in(done.stdout)


def listeners_in(said: bytes) -> frozenset[OpenPort]:
    """Return the listeners in what the host printed; lines that are none are left out."""
    lines = map(_LINE.fullmatch, said[:MOST].decode("ascii", "replace").splitlines())
    return frozenset(
        OpenPort(line[1], int(line[3], 16), int(line[4]))
        for line in lines
        if line and not _LOOPBACK.fullmatch(line[2]) and int(line[3], 16)
    )
