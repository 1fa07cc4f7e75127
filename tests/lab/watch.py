"""Every command line that any process of this machine, its hosts' and containers' too, ever had."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path

CONNECTOR, PROCESSES = 11, 1  # netlink's family, and its group that tells of processes
HEADER = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=IIIIHHI")  # connector's index, value, seq, ack, length, flags; operation
LISTEN, DONE = 1, 3
EVENT = struct.Struct("=IIQI")  # what, processor, time, process
EXEC = 2
SWEEP = 0.25  # seconds, for titles that processes give themselves


class Watch:
    """Collects command lines from enter to exit, each as soon as the kernel tells of its start.

    Where the kernel tells nothing, it looks again and again, and the shortest ones are missed.
    """

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._socket = _events()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._socket:
            self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(PermissionError):  # to look before a short one has ended
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        swept = 0.0
        while not self._stop.is_set():
            if time.monotonic() - swept > (SWEEP if self._socket else SWEEP / 10):
                for process in Path("/proc").glob("[0-9]*"):
                    self._look(int(process.name))
                swept = time.monotonic()
            if self._socket is None:
                self._stop.wait(SWEEP / 10)
            elif pid := _started(self._socket):
                self._look(pid)

    def _look(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            self.lines.add(line.replace(b"\0", b" ").decode(errors="replace"))


def _events() -> socket.socket | None:
    """Return a socket by which the kernel tells what processes do, if it does so here."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, CONNECTOR)
        opened.bind((0, PROCESSES))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        size = HEADER.size + MESSAGE.size
        header = HEADER.pack(size, DONE, 0, 0, os.getpid())
        opened.send(header + MESSAGE.pack(PROCESSES, 1, 0, 0, 4, 0, LISTEN))
    except OSError:
        return None
    opened.settimeout(0.05)
    return opened


def _started(events: socket.socket) -> int:
    """Return the process that began a program, or 0 after some other event or none."""
    try:
        event = events.recv(4096)
    except OSError:  # nothing for a while, or more than could be kept
        return 0
    what, _, _, pid = EVENT.unpack_from(event, HEADER.size + MESSAGE.size - 4)
    return int(pid) if what == EXEC else 0
