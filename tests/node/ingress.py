"""HAProxy with our lines, in front of small servers that stand for replicas."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from raycluster.serve.balance import SESSION_HEADER
from raycluster.serve.haproxy import edited
from tests.local.cluster import until
from tests.ports import free_ports

REPLICAS = 4
CHAT = "/v1/chat/completions"
BUSY, DOWN, DYING = "/busy", "/down", "/dying"
CONFIG = """\
global
    maxconn 4096
    tune.bufsize 65536
    stats socket {socket} level admin expose-fd listeners
defaults
    option idle-close-on-response
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    retries 1
    option redispatch 1
    retry-on conn-failure empty-response
    errorfile 502 /of/serve/500.http
    errorfile 503 /of/serve/500.http
    errorfile 504 /of/serve/500.http
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-smol
backend http-smol
    http-reuse always
{servers}
"""


class Replica(BaseHTTPRequestHandler):
    """Answers with its own port, when its server lets it go; at BUSY it refuses
    as Serve does, at DOWN without a time to wait, and at DYING it breaks off."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        assert isinstance(server, Held)
        server.taken += 1
        server.go.wait(100)
        if self.path == DYING:
            self.wfile.write(b"HTTP/1.1 2")
            self.close_connection = True
            return
        if self.path == DOWN:
            self.send_error(503)
            return
        if self.path == BUSY:
            self.send_response(429)
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", "4")
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(b"full")
            return
        said = str(server.server_port).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        if self.path == "/":  # for an idle connection that broke, HAProxy tells clients nothing
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Held(ThreadingHTTPServer):
    """A replica whose requests wait while `go` is not set; `taken` counts them."""

    daemon_threads = False  # so that closing it waits for its connections

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), Replica)
        self.name = f"replica-{number}"  # by which hashing knows it: the same in each run
        self.go = threading.Event()
        self.go.set()
        self.taken = 0


class Ingress:
    """HAProxy in front of replicas; `start` takes another set of them."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        self.replicas = [Held(number) for number in range(REPLICAS)]
        for replica in self.replicas:
            threading.Thread(target=replica.serve_forever, args=(0.02,), daemon=True).start()
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()
        self.socket = folder / "admin"

    def write(self, port: int, rule: str, replicas: list[Held], connections: int = 0) -> Path:
        servers = "\n".join(
            f"    server {r.name} 127.0.0.1:{r.server_port} check" for r in replicas
        )
        path = self.folder / "haproxy.cfg"
        written = CONFIG.format(port=port, servers=servers, socket=self.socket)
        path.write_text(edited(written, {}, {"smol": rule}, connections=connections))
        return path

    @contextmanager
    def followed(self, replicas: list[Held]) -> Iterator[subprocess.Popen[bytes]]:
        """Let another HAProxy follow, as Serve does when replicas change; yield the former."""
        former = self.process
        assert former
        path = self.write(self.client.base_url.port or 0, "least-busy", replicas)
        follows = ("-sf", str(former.pid), "-x", self.socket)
        self.process = subprocess.Popen([self.program, "-f", path, "-db", *follows])
        try:
            yield former
        finally:
            former.kill()
            former.wait()

    def start(
        self, rule: str, replicas: list[Held], at_first: int = 200, connections: int = 0
    ) -> httpx.Client:
        (port,) = free_ports(1)
        path = self.write(port, rule, replicas, connections)
        self.stop()
        self.process = subprocess.Popen([self.program, "-f", path, "-db"])
        client = self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

        def answers() -> bool:
            try:
                return client.post("/", json={}).status_code == at_first
            except httpx.TransportError:
                return False

        until(answers, seconds=20, what="no HAProxy")
        return client

    def stop(self) -> None:
        self.client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def opened(folder: Path, program: str) -> Iterator[Ingress]:
    """Run replicas; HAProxy before them when it is started."""
    made = Ingress(folder, program)
    try:
        yield made
    finally:
        made.stop()
        for replica in made.replicas:
            replica.shutdown()
            replica.server_close()


def served_by(client: httpx.Client, body: Any, session: str = "") -> str:
    headers = {SESSION_HEADER: session} if session else {}
    return client.post("/v1/chat/completions", json=body, headers=headers).text


def taken(ingress: Ingress) -> int:
    return sum(replica.taken for replica in ingress.replicas)
