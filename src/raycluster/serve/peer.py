"""Speaks to a port of this host only where the other end is a process of our own.

    python -c SOURCE PORT SECONDS WHAT < REQUEST > ANSWER

A request that holds a secret goes out only after the kernel has told whose the other end of this
very connection is: this user's, and open in a process that can be seen from here. Inside a
container these are the container's processes alone, so that a user of the host with the same number
does not count. WHAT is for who looks at the processes of a host. Ends with TAKEN, and the user's
number on stderr, where it is somebody else's.

Runs on hosts: standard library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
TAKEN, SILENT = 97, 96
"""Exit statuses: somebody else's port; no connection, or one that broke."""
LISTENS = "0A"
PAUSE_S = 0.01


class TakenError(Exception):
    """The port is held by another user, or by a process that cannot be seen from here."""

    def __init__(self, port: int, uid: int) -> None:
        super().__init__(f"port {port} is held by a process of uid {uid}, which is not ours")
        self.port, self.uid = port, uid


class End(NamedTuple):
    """One end of a connection, or a listener, in the kernel's table; an inode of 0 has no owner."""

    local: str
    remote: str
    state: str
    uid: int
    inode: int


def connect(port: int, seconds: float, *, seen: bool = True) -> socket.socket:
    """Return a connection to a process of ours. Raises TakenError, and OSError where none is made.

    `seen` says whether that process must be one that can be seen from here.
    """
    end = time.monotonic() + seconds
    connection = socket.create_connection((LOOPBACK, port), seconds)
    try:
        while not _accepted(connection, port, seen):
            if time.monotonic() > end or _closed(connection):
                raise OSError("nothing accepts the connection")
            time.sleep(PAUSE_S)
    except BaseException:
        connection.close()
        raise
    return connection


def _accepted(connection: socket.socket, port: int, seen: bool) -> bool:
    """Tell whether a process of ours has taken it; one that nobody has taken yet has no owner."""
    near, far = connection.getsockname(), connection.getpeername()
    ends = list(_ends())
    mine = [e for e in ends if e.local in _written(far) and e.remote in _written(near)]
    taken = [e for e in mine if e.inode]
    places = {*_written((LOOPBACK, port)), *_written(("0.0.0.0", port)), _six(bytes(16), port)}  # noqa: S104
    for each in taken or [e for e in ends if e.state == LISTENS and e.local in places]:
        if each.uid != os.geteuid() or (seen and not _open_here(each.inode)):
            raise TakenError(port, each.uid)
    return bool(taken)


def _closed(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)


def _ends() -> Iterator[End]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as table:  # noqa: PTH123 - may be long
                next(table)
                for line in table:
                    word = line.split()
                    yield End(word[1], word[2], word[3], int(word[7]), int(word[9]))
        except FileNotFoundError:
            if name == "tcp":
                raise OSError("cannot determine the owner of a connection") from None


def _written(address: tuple[str, int]) -> tuple[str, str]:
    """Return how the kernel's tables write an IPv4 address, the second for a socket of IPv6."""
    four = socket.inet_aton(address[0])
    return (
        "{:08X}:{:04X}".format(*struct.unpack("=I", four), address[1]),
        _six(bytes(10) + b"\xff\xff" + four, address[1]),
    )


def _six(packed: bytes, port: int) -> str:
    return "{:08X}{:08X}{:08X}{:08X}:{:04X}".format(*struct.unpack("=4I", packed), port)


def _open_here(inode: int) -> bool:
    wanted = f"socket:[{inode}]"
    return any(wanted in _open_in(each) for each in os.scandir("/proc") if each.name.isdecimal())


def _open_in(process: os.DirEntry[str]) -> Iterator[str]:
    try:
        for each in os.scandir(f"{process.path}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(each.path)  # noqa: PTH115 - that of Path is of Python 3.9
    except OSError:  # another user's, or it has ended
        return


def main() -> None:
    """Send what standard input holds, and write what comes back."""
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    request = sys.stdin.buffer.read()
    try:
        with connect(port, seconds) as connection:
            connection.settimeout(seconds)
            connection.sendall(request)
            while True:
                data = connection.recv(65536)
                if not data:
                    break
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except TakenError as error:
        sys.stderr.write(f"{error.uid}\n")
        sys.exit(TAKEN)
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(SILENT)


if __name__ == "__main__":
    main()
