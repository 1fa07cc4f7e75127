"""Measures many streams at a time through HAProxy: who is answered, how soon, and its memory.

    python -m benchmarks.connections [--streams 1000,5000] [--rounds 3]

Clients open a stream each at one time; the endpoint (benchmarks/streams.py) sends a few events a
second. Asked in turns: the endpoint itself, HAProxy as Serve has it (4096 connections), and with as
many as `serve/connections.py` says. Each stream is answered, refused, or hangs: nothing for 30 s.
Ends with 1 when one hangs with our number. Root is not needed.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.client import endpoint
from benchmarks.figures import Limit, keep
from benchmarks.routing import haproxy_program, running
from raycluster.serve.connections import most_connections
from raycluster.serve.haproxy import edited
from tests.ports import free_ports

HUNG_S = 30
EVENTS, GAP_S, FIRST_S = 12, 1.0, 1.0
CONFIG = """\
global
    maxconn 4096
    nbthread 1
    tune.bufsize 65536
defaults
    mode http
    timeout connect 2s
    timeout client 3600s
    timeout server 3600s
    option abortonclose
    option http-no-delay
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-m
backend http-m
    http-reuse always
    server one 127.0.0.1:{engine}
"""
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
    b"content-length: 2\r\n\r\n{}"
)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="1000,5000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    rows: list[dict[str, Any]] = []
    for count in map(int, options.streams.split(",")):
        for number in range(options.rounds):
            ways = [("direct", None), ("serve", 0), ("ours", most_connections())]
            for way, most in ways if number % 2 == 0 else ways[::-1]:
                row = {"streams": count, "round": number, "way": way, **one(most, count)}
                print(row, flush=True)
                rows.append(row)
    hung = max(row["hung"] for row in rows if row["way"] == "ours")
    keep("connections", rows, [Limit("streams that hung with our number", hung, 0)])


def one(most: int | None, count: int) -> Mapping[str, Any]:
    """Open so many streams at a time, straight or through a HAProxy that takes `most`."""
    with ExitStack() as stack:
        url = stack.enter_context(endpoint(EVENTS, GAP_S, FIRST_S))
        port, process = int(url.rpartition(":")[2]), None
        if most is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            port, process = stack.enter_context(haproxy(folder, port, most))
        before = resident(process)
        told = asyncio.run(asked(port, count, process))
        most_kb = told.pop("resident_kb") - before
        return {**told, "kb_a_stream": round(most_kb / count, 1) if process else 0}


@contextmanager
def haproxy(folder: Path, engine: int, most: int) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run HAProxy before the endpoint; yield where it listens."""
    (port,) = free_ports(1)
    path = folder / "haproxy.cfg"
    written = CONFIG.format(port=port, engine=engine)
    path.write_text(edited(written, {}, {}, connections=most))
    words = (haproxy_program(), "-db", "-f", str(path))
    with running(words, port, stderr=subprocess.DEVNULL) as process:
        yield port, process


def resident(process: subprocess.Popen[bytes] | None) -> int:
    """Return the memory of a process in kB."""
    if process is None:
        return 0
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def asked(port: int, count: int, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """Ask; return how many had which answer, and when its first byte came."""
    tasks = [asyncio.ensure_future(stream(port)) for _ in range(count)]
    await asyncio.sleep(FIRST_S + EVENTS * GAP_S / 2)
    memory = resident(process)
    answers = await asyncio.gather(*tasks)
    counted = Counter(status for status, _ in answers)
    times = [seconds for status, seconds in answers if status == "200"]
    cuts = quantiles(times, n=100)
    return {
        "answered": counted.pop("200", 0),
        "refused": counted.pop("503", 0),
        "hung": counted.pop("hung", 0),
        "other": counted.total(),
        "head_p50_ms": cuts[49] * 1e3,
        "head_p99_ms": cuts[98] * 1e3,
        "resident_kb": memory,
    }


async def stream(port: int) -> tuple[str, float]:
    """Hold one stream to its end; return its status and seconds to its head after it was sent."""
    writer = None
    try:
        async with asyncio.timeout(HUNG_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(ASK)
            head = await reader.readline()
            took = time.monotonic() - began
        status = head.split()[1].decode()
        while status == "200" and (line := await reader.readline()) and b"[DONE]" not in line:
            pass
        return status, took  # noqa: TRY300
    except TimeoutError:
        return "hung", 0.0
    except (OSError, IndexError) as error:
        return type(error).__name__, 0.0
    finally:
        if writer is not None:
            writer.close()


if __name__ == "__main__":
    main()
