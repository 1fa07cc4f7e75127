"""Sent to hosts: listens at ports of the cluster for a moment, and connects to those of others.

    python3 -I -S -c PROGRAM listen ORDER     one line of JSON, then it answers until it is ended
    python3 -I -S -c PROGRAM dial ORDER       one line of JSON

ORDER is one JSON object. Standard library alone, Python 3.8. Errors travel as numbers, never as
words, which a host says in its own language.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any


def listen(order: dict[str, Any]) -> None:
    """Answer with the token at those of the ports that are free."""
    taken = {}
    with selectors.DefaultSelector() as ready:
        for port in order["ports"]:
            try:
                ready.register(_listener(port), selectors.EVENT_READ)
            except OSError as error:
                taken[str(port)] = error.errno
        guarded = Path(order["rules"]).exists()
        own = _own(order["address"])
        _say({"pid": os.getpid(), "taken": taken, "own": own, "guarded": guarded})
        reader = select.poll()
        reader.register(sys.stdout, 0)  # an error alone: that nobody reads any more
        end = time.monotonic() + order["seconds"]
        while (left := end - time.monotonic()) > 0 and not reader.poll(0):
            for key, _ in ready.select(min(left, 1.0)):
                server: Any = key.fileobj
                with contextlib.suppress(OSError), server.accept()[0] as stream:
                    stream.settimeout(1.0)
                    stream.sendall(order["token"].encode())


def _listener(port: int) -> socket.socket:
    """Listen at a port of every address, of both kinds where the host has both."""
    kind = socket.AF_INET6 if socket.has_ipv6 and Path("/proc/net/if_inet6").exists() else None
    server = socket.socket(kind or socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("", port))
    server.listen(128)
    server.setblocking(False)
    return server


def _own(address: str) -> int:
    """Return 0 where the address is one of this host's, else an error's number."""
    try:
        kind, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.bind(place)
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


def dial(order: dict[str, Any]) -> None:
    """Tell of each target an error's number and what was heard there."""
    found: list[list[Any]] = [[errno.ETIMEDOUT, ""] for _ in order["targets"]]
    with selectors.DefaultSelector() as ready:
        for number, (address, port) in enumerate(order["targets"]):
            try:
                ready.register(_begun(address, port), selectors.EVENT_WRITE, number)
            except OSError as error:
                found[number] = [error.errno or errno.EHOSTUNREACH, ""]
        end = time.monotonic() + order["seconds"]
        while ready.get_map() and (left := end - time.monotonic()) > 0:
            for key, events in ready.select(left):
                _go_on(ready, key, events, found)
    _say({"found": found})


def _begun(address: str, port: int) -> socket.socket:
    kind, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    stream = socket.socket(kind)
    stream.setblocking(False)
    code = stream.connect_ex(place)
    if code not in (0, errno.EINPROGRESS):
        stream.close()
        raise OSError(code, "")
    return stream


def _go_on(
    ready: selectors.BaseSelector, key: selectors.SelectorKey, events: int, found: list[list[Any]]
) -> None:
    """Take the next step with a stream: it is connected, or it says something, or it ends."""
    stream: Any = key.fileobj
    if events & selectors.EVENT_WRITE:
        code = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        found[key.data] = [code, ""]
        if not code:
            ready.modify(stream, selectors.EVENT_READ, key.data)
            return
    else:
        with contextlib.suppress(OSError):
            found[key.data] = [0, stream.recv(200).decode("ascii", "replace")]
    ready.unregister(stream)
    stream.close()


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    {"listen": listen, "dial": dial}[sys.argv[1]](json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
