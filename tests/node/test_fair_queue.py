"""HAProxy itself before a busy engine: keys have their turns, and no key takes all places."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from raycluster.serve import direct
from raycluster.serve.haproxy import edited
from tests.local.cluster import until
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

CONFIG = """\
global
    stats socket {stats}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-a
backend http-a
    server ONE 127.0.0.1:{replica} check
"""
PLACES = 64


class Answering(BaseHTTPRequestHandler):
    """Notes who asks, and answers when it may."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        engine = self.server
        assert isinstance(engine, Engine)
        engine.order.append(self.headers.get(direct.OWNER_HEADER, ""))
        engine.go.acquire(timeout=60)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Engine(ThreadingHTTPServer):
    """Takes one request at a time, as HAProxy is told; `go` lets each of them go."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Answering)
        self.order: list[str] = []
        self.go = threading.Semaphore(0)

    def handle_error(self, *_: object) -> None:
        """Keep quiet of who leaves."""


class Queue:
    """HAProxy before an engine."""

    def __init__(self, engine: Engine, url: str, stats: Path) -> None:
        self.engine = engine
        self._stats = stats
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.Client(base_url=url, timeout=60, limits=limits, trust_env=False)
        self._pool = ThreadPoolExecutor(2 * PLACES)

    def ask(self, owner: str, limits: str = "") -> Future[httpx.Response]:
        """Send a request of a key."""
        headers = {direct.OWNER_HEADER: owner, direct.LIMITS_HEADER: limits}
        sent = {name: value for name, value in headers.items() if value}
        return self._pool.submit(self._http.post, "/v1/completions", json={}, headers=sent)

    def close(self) -> None:
        """Return when everybody has an answer."""
        self._pool.shutdown()
        self._http.close()

    def waiting(self) -> int:
        """Return how many requests wait."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self._stats))
            asked.sendall(b"show stat\n")
            text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        rows = (line.split(",") for line in text.splitlines())
        return next(int(row[2]) for row in rows if row[:2] == ["http-a", "BACKEND"])

    def stands(self, number: int) -> None:
        """Return when so many wait behind the one that the engine has."""
        until(lambda: self.waiting() == number, seconds=30, what=f"{number} do not wait")


@pytest.mark.parametrize("routing", ["least-busy", "sticky", "prefix"])
def test_turns_go_with_every_way_of_routing(program: str, tmp_path: Path, routing: str) -> None:
    """A section of HAProxy has one table; keys need theirs, and prefixes."""
    replica, port = free_ports(2)
    config = CONFIG.format(port=port, replica=replica, stats=tmp_path / "s")
    config += f"    server TWO 127.0.0.2:{replica} check\n"
    path = tmp_path / "haproxy.cfg"
    limits = {"a": [1, PLACES - 1]}
    path.write_text(edited(config, {}, {"a": routing}, limits, offset=1, connections=1000))
    assert "track-sc2" in path.read_text()
    assert ("track-sc1" in path.read_text()) == (routing == "prefix")
    done = subprocess.run([program, "-c", "-f", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def queue(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(direct, "AHEAD_MS", 10_000)  # longer than a slow machine takes for a test
    port, replica, at = free_ports(3)
    engine = Engine(at)
    checked = ThreadingHTTPServer(("127.0.0.1", replica), Answering)
    for server in (engine, checked):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stats = tmp_path / "s"
    config = CONFIG.format(port=port, replica=replica, stats=stats)
    path = tmp_path / "haproxy.cfg"
    path.write_text(edited(config, {}, {}, {"a": [1, PLACES - 1]}, offset=at - replica))
    process = subprocess.Popen([program, "-f", path, "-db"])
    made = Queue(engine, f"http://127.0.0.1:{port}", stats)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, seconds=20, what="no HAProxy")
        yield made
    finally:
        engine.go.release(1000)
        made.close()
        process.kill()
        process.wait()
        for server in (engine, checked):
            server.shutdown()
            server.server_close()


def codes(answers: list[Future[httpx.Response]]) -> list[int]:
    return sorted(answer.result(60).status_code for answer in answers)


def test_a_key_that_floods_leaves_places_and_turns_to_another(queue: Queue) -> None:
    share = PLACES // 2
    flood = [queue.ask("heavy") for _ in range(PLACES)]
    until(
        lambda: sum(f.done() for f in flood) + queue.waiting() + 1 == PLACES,
        seconds=60,
        what="not all wait or are refused",
    )
    refused = [f.result() for f in flood if f.done()]
    assert share - 8 <= PLACES - len(refused) <= share  # HAProxy's threads count side by side
    for told in refused:
        assert (told.status_code, told.headers["retry-after"]) == (429, "1")
        assert "of this key" in told.json()["error"]["message"]
    light = [queue.ask("light") for _ in range(3)]
    queue.stands(PLACES - len(refused) - 1 + 3)
    queue.engine.go.release(1000)
    assert codes(light) == [200] * 3
    assert codes(flood) == [200] * (PLACES - len(refused)) + [429] * len(refused)
    assert last_of("light", queue.engine.order) < 16, queue.engine.order


def last_of(owner: str, order: Sequence[str]) -> int:
    return max(n for n, each in enumerate(order) if each == owner)


@pytest.mark.parametrize("first", ["low", "normal"])
def test_requests_of_a_higher_priority_go_first(queue: Queue, first: str) -> None:
    limits: Mapping[str, str] = {"low": "priority=low", "high": "tokens_per_day=5,priority=high"}
    queue.ask("first")
    until(lambda: queue.engine.order, seconds=30, what="not asked")
    answers = []
    for owner in (first, "normal" if first == "low" else "low", "high"):
        answers += [queue.ask(owner, limits.get(owner, "")) for _ in range(3)]
        queue.stands(len(answers))
    queue.engine.go.release(1000)
    assert codes(answers) == [200] * 9
    assert queue.engine.order[1:] == ["high"] * 3 + ["normal"] * 3 + ["low"] * 3


def test_without_keys_all_places_are_for_everybody(queue: Queue) -> None:
    flood = [queue.ask("") for _ in range(PLACES)]
    queue.stands(PLACES - 1)
    queue.engine.go.release(1000)
    assert codes(flood) == [200] * PLACES
