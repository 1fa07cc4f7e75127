"""Compares both ways to reach a host by SSH, the library and the system's ssh, on one sshd.

    python -m benchmarks.ssh [--rounds 5]

The ways take turns. `call` is a request of Docker's API (a made one of 500 bytes, from a program
behind a Unix socket) on a connection of its own, `kept` one on a connection that is open; `twenty`
is the time until 20 connections stand, with the CPU of this side for each and a command. Raw
figures go to benchmarks/results/. Ends with 1 when a wanted limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Process
from pathlib import Path

from benchmarks.figures import Limit, keep
from raycluster.core.interfaces import ByteStream, Transport
from raycluster.hosts.transports.ssh import SshOptions, open_ssh
from raycluster.hosts.transports.ssh_system import open_system
from tests.contract.sshd import Sshd, wait_for

WAYS: Mapping[str, Callable[[str, SshOptions], Transport]] = {
    "library": open_ssh,
    "system": open_system,
}
REQUEST = b"GET /v1.45/containers/json HTTP/1.1\r\nHost: docker\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n".ljust(500, b"x")
COMMANDS, CALLS, HOSTS = 20, 300, 20
MEGABYTES = 100


def serve(path: str) -> None:
    """Answer whoever connects to a Unix socket, until killed."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(100)
    while True:
        with contextlib.suppress(OSError), server.accept()[0] as client:
            while client.recv(65536):
                client.sendall(ANSWER)


def ask(stream: ByteStream) -> None:
    stream.sendall(REQUEST)
    got = 0
    while got < len(ANSWER):
        got += len(stream.recv(65536))


def call(transport: Transport, path: str) -> None:
    with contextlib.closing(transport.connect(path)) as stream:
        ask(stream)


def milliseconds(work: Callable[[], object], count: int) -> float:
    """Return the median of single runs."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def cpu() -> float:
    """Return the seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(way: str, options: SshOptions, path: str) -> dict[str, float]:
    reach, figures = WAYS[way], {}
    before = cpu()
    began = time.perf_counter()
    with contextlib.closing(reach("host", options)) as transport:
        figures["open_ms"] = (time.perf_counter() - began) * 1000
        figures["command_ms"] = milliseconds(lambda: transport.run(("true",)), COMMANDS)
        figures["call_ms"] = milliseconds(lambda: call(transport, path), CALLS)
        with contextlib.closing(transport.connect(path)) as stream:
            figures["kept_ms"] = milliseconds(lambda: ask(stream), CALLS)
        began, size = time.perf_counter(), MEGABYTES * 1_000_000
        counted = transport.run(("wc", "-c"), input=bytes(size)).text
        if int(counted) != size:
            raise RuntimeError(counted)
        figures["up_mb_s"] = MEGABYTES / (time.perf_counter() - began)
    figures["cpu_s"] = cpu() - before
    before, began = cpu(), time.perf_counter()
    with ThreadPoolExecutor(HOSTS) as pool:
        opened = list(pool.map(lambda _: reach("host", options), range(HOSTS)))
        figures["twenty_s"] = time.perf_counter() - began
        said = list(pool.map(lambda each: each.run(("echo", "hi")).text, opened))
        list(pool.map(lambda each: each.close(), opened))
    if said != ["hi"] * HOSTS:
        raise RuntimeError(f"{said}")
    figures["twenty_cpu_ms_each"] = (cpu() - before) / HOSTS * 1000
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/api"
        api = Process(target=serve, args=(path,), daemon=True)
        api.start()
        wait_for(lambda: os.path.exists(path), "the API answers")  # noqa: PTH110
        sshd = Sshd(Path(folder) / "sshd").start()
        try:
            for turn in range(rounds):
                for way in sorted(WAYS, reverse=turn % 2 == 1):
                    figures = measure(way, sshd.options(), path)
                    rows.append({"round": turn, "way": way, **figures})
                    print(way, *(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
        finally:
            sshd.stop()
            api.kill()
    medians = {
        way: {
            name: statistics.median(float(str(row[name])) for row in rows if row["way"] == way)
            for name in rows[0]
            if name not in ("round", "way")
        }
        for way in WAYS
    }
    for way, figures in medians.items():
        print(f"median of {way}:", *(f"{k} {v:.2f}" for k, v in figures.items()))
    limits = [
        Limit("ms of a call, the library", medians["library"]["call_ms"], 1.3),
        Limit("ms of a call, the system's ssh", medians["system"]["call_ms"], 1.3),
    ]
    keep("ssh", rows, limits)


if __name__ == "__main__":
    main()
