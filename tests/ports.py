"""Ports that are free for a server of a test."""

from __future__ import annotations

import contextlib
import random
import socket

PORTS = range(21000, 30000)
"""Outside of what the kernel gives to outgoing connections, Ray's own among them, which could take
a port between our look and its use; and between the ranges of workers and replicas."""

_CHANCE = random.SystemRandom()  # whatever seed a test has set
_given: set[int] = set()


def free_port() -> int:
    """Return a port on which nobody listens."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return so many ports on which nobody listens, and which were not given before."""
    found: list[int] = []
    for port in _CHANCE.sample(PORTS, len(PORTS)):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            _given.update(found)
            return found
    raise AssertionError(f"no {count} free ports in {PORTS}")


def ports_in_a_row(count: int) -> list[int]:
    """Return free ports of which each follows the one before."""
    for first in _CHANCE.sample(PORTS, len(PORTS)):
        row = range(first, first + count)
        if row[-1] in PORTS and all(map(_is_free, row)):
            _given.update(row)
            return list(row)
    raise AssertionError(f"no {count} free ports in a row in {PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", port))
        return port not in _given
    return False
