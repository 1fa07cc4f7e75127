"""Somebody who uses a tunnel: asks at each of its local ports once, and then ends it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from queue import SimpleQueue
from unittest import mock

from raycluster.tunnel import keep, run
from raycluster.tunnel.ports import LOOPBACK, Forward
from tests.ports import free_port

ASKED = b"GET /v1/models HTTP/1.1\r\nHost: tunnel\r\nConnection: close\r\n\r\n"
MOST, PAUSE_S = 4 << 20, 0.02


@contextmanager
def visited(*, opens: float, answers: float) -> Iterator[list[bytes]]:
    """Inside it `raycluster tunnel` has a visitor, who gives up after so many seconds.

    Yields what came. The tunnel goes over the transport, not over the system's ssh.
    """
    open_now: list[Forward] = []
    said: list[bytes] = []
    first = run._first

    def chosen(forwards: Sequence[Forward]) -> tuple[Forward, ...]:
        open_now[:] = [replace(f, local_port=_port(f.remote[1])) for f in forwards]
        return tuple(open_now)

    def visit(events: SimpleQueue[Exception | None], over: threading.Event) -> None:
        for forward in open_now:
            said.append(_heard(forward.port, opens, answers, over))
        events.put(None)

    def attended(events: SimpleQueue[Exception | None]) -> Exception | None:
        over = threading.Event()
        visitor = threading.Thread(target=visit, args=(events, over), daemon=True)
        visitor.start()
        try:
            return first(events)
        finally:
            over.set()
            visitor.join()

    with (
        mock.patch.object(run, "choose_ports", chosen),
        mock.patch.object(run, "_first", attended),
        mock.patch.object(keep, "available", lambda _: False),
    ):
        yield said


@cache
def _port(_remote: int) -> int:
    return free_port()


def _heard(port: int, opens: float, answers: float, over: threading.Event) -> bytes:
    """Ask until something comes: the port listens before there is a way to the host."""
    for _ in range(max(1, round(opens / PAUSE_S))):
        with suppress(OSError):
            if said := _asked(port, answers, over):
                return said
        if over.wait(PAUSE_S):
            break
    return b""


def _asked(port: int, answers: float, over: threading.Event) -> bytes:
    with socket.create_connection((LOOPBACK, port), 5) as client:
        client.settimeout(answers)
        client.sendall(ASKED)
        said = b""
        while len(said) < MOST and not over.is_set() and (data := client.recv(65536)):
            said += data
        return said
