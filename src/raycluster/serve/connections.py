"""How many connections HAProxy takes: as many as the node's memory and open files allow.

Serve says 4096 to every node, and what comes beyond waits without a word. Here a part more is
taken, to be told that it is too much.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

BYTES = 70_000
"""Memory of a stream, most of it a buffer."""

SHARE = 16
"""One part of so many of the memory may be HAProxy's buffers."""

FILES, OTHER_FILES = 3.2, 512
"""Open files for each connection (two sockets, some pipes, a part more to refuse), and for all."""

FEWEST, MOST = 256, 32_768
"""The second is about what one address has as ports towards an engine."""

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def most_connections() -> int:
    """Return how many connections this node can hold."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    of_files = MOST if files == resource.RLIM_INFINITY else int((files - OTHER_FILES) / FILES)
    return max(FEWEST, min(MOST, of_files, memory() // SHARE // BYTES))


def memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory in bytes, of the container where that has less than its host."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        try:
            found.append(int((groups / name).read_text()))
        except (OSError, ValueError):
            continue
    return min(found)


def limited(config: str, most: int) -> str:
    """Return the configuration that takes so many connections, and some more to refuse."""
    more = max(64, most // 4)
    return re.sub(r"(?m)^(    maxconn) \d+$", rf"\1 {most + more}", config, count=1)
