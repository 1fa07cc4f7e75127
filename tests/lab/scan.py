"""Which of all TCP ports of hosts take a connection from this machine, which is none of them."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Sequence

AT_ONCE = 19000
PATIENCE_S = 1.0


def open_ports(addresses: Sequence[str]) -> dict[str, set[int]]:
    """Return every TCP port of 65,535 of each address that takes a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    every = [(address, port) for port in range(1, 65536) for address in addresses]
    step = min(AT_ONCE, hard - 500)
    found: dict[str, set[int]] = {address: set() for address in addresses}
    try:
        for first in range(0, len(every), step):
            for address, port in _open_among(every[first : first + step]):
                found[address].add(port)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def _open_among(targets: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    with selectors.DefaultSelector() as selector:
        for target in targets:
            family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            probe = socket.socket(family)
            probe.setblocking(False)
            probe.connect_ex(target)
            selector.register(probe, selectors.EVENT_WRITE, (probe, target))
        end = time.monotonic() + PATIENCE_S
        while selector.get_map():
            ready = selector.select(0.1)
            if not ready and time.monotonic() > end:
                break
            for key, _ in ready:
                probe, target = key.data
                if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.add(target)
                selector.unregister(probe)
                probe.close()
        for key in list(selector.get_map().values()):
            key.data[0].close()
    return found
