"""Ports that are free for a server of a test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

PORTS = range(21000, 30000)
"""Outside of what the kernel gives to outgoing connections, Ray's own among them, which could take
a port between our look and its use; and between the ranges of workers and replicas."""
BLOCK = 100
"""Ports that a process of the tests holds at once, so that no other takes one in that time."""

FOLDER = Path(tempfile.gettempdir(), f"raycluster-ports-{os.getuid()}")
"""Of locks; where it is stays as it is, also in a test that has another folder for such files."""

_CHANCE = random.SystemRandom()  # whatever seed a test has set
_blocks: list[IO[str]] = []
_left: list[int] = []


def free_port() -> int:
    """Return a port on which nobody listens."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return so many ports on which nobody listens, and which were not given before."""
    found: list[int] = []
    while len(found) < count:
        if not _left:
            _hold_block()
        port = _left.pop(_CHANCE.randrange(len(_left)))
        if _is_free(port):
            found.append(port)
    return found


def ports_in_a_row(count: int) -> list[int]:
    """Return free ports of which each follows the one before."""
    while True:
        for first in _left:
            row = range(first, first + count)
            if set(row) <= set(_left) and all(map(_is_free, row)):
                _left[:] = [port for port in _left if port not in row]
                return list(row)
        _hold_block()


def _hold_block() -> None:
    FOLDER.mkdir(exist_ok=True)
    firsts = PORTS[::BLOCK]
    for first in _CHANCE.sample(firsts, len(firsts)):
        block = (FOLDER / str(first)).open("a")
        try:
            fcntl.flock(block, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            block.close()
        else:
            _blocks.append(block)  # held until this process ends
            _left.extend(range(first, first + BLOCK))
            return
    raise AssertionError(f"other processes hold all of {PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", port))
        return True
    return False
