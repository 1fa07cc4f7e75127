"""HAProxy itself before engines of which each keeps its own answers of /v1/responses."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from raycluster.serve.haproxy import RETRY_S, edited
from tests.local.cluster import until
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

CONFIG = """\
global
    maxconn 4096
    tune.bufsize 65536
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option redispatch 1
    retry-on conn-failure empty-response
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_http-a path_beg /
    use_backend http-a if is_http-a
backend http-a
"""
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "::1")
ASKED, TOGETHER = 240, 8


class Engine(ThreadingHTTPServer):
    """Has one answer, which `resp_HOST` names; says 404 as vLLM does, or as FastAPI."""

    request_queue_size = 256

    def __init__(self, host: str, port: int, *, bare: bool = False) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Answering)
        self.kept = f"resp_{HOSTS.index(host)}"
        told = {"detail": "Not Found"} if bare else {"error": {"message": "not found here"}}
        self.refusal = json.dumps(told, separators=(",", ":")).encode()

    def handle_error(self, *_: object) -> None:
        """Keep quiet of who leaves."""


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        engine = self.server
        assert isinstance(engine, Engine)
        kept = self.path.partition("?")[0].removesuffix("/cancel").rpartition("/")[2]
        self._answer(engine, found=kept in (engine.kept, "healthz"))

    def do_POST(self) -> None:
        engine = self.server
        assert isinstance(engine, Engine)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/cancel"):
            self.do_GET()
            return
        before = json.loads(body).get("previous_response_id")
        self._answer(engine, found=before in (None, engine.kept))

    def _answer(self, engine: Engine, *, found: bool) -> None:
        said = json.dumps({"id": engine.kept}).encode() if found else engine.refusal
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def row(
    program: str,
    folder: Path,
    *,
    bare: Sequence[str] = (),
    down: Sequence[str] = (),
    gone: Sequence[str] = (),
) -> Iterator[httpx.Client]:
    """Start HAProxy before HOSTS; those in `down` fail their checks, those in `gone` have ended."""
    port, replica, at = free_ports(3)
    with ExitStack() as stack:
        engines = {host: Engine(host, at, bare=host in bare) for host in HOSTS}
        checked = [Engine(host, replica) for host in HOSTS if host not in down]
        for server in (*engines.values(), *checked):
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        config = CONFIG.format(port=port)
        for number, host in enumerate(HOSTS):
            shown = f"[{host}]" if ":" in host else host
            config += f"    server R{number} {shown}:{replica} check inter 100ms fall 1 rise 1\n"
        path = folder / "haproxy.cfg"
        text = edited(config, {}, {}, {"a": [64, 256]}, offset=at - replica)
        stats = folder / "s"
        path.write_text(text.replace("global\n", f"global\n    stats socket {stats}\n", 1))
        process = subprocess.Popen([program, "-f", path, "-db"])
        stack.callback(process.wait)
        stack.callback(process.kill)

        def seen() -> bool:
            try:
                return states(stats).count("UP") == len(checked)
            except OSError:
                return False

        until(seen, seconds=30, what="replicas are not seen as they are")
        for host in gone:
            engines[host].shutdown()
            engines[host].server_close()
        url = f"http://127.0.0.1:{port}"
        yield stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))


def states(stats: Path) -> list[str]:
    """Return what HAProxy believes of each replica."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(stats))
        asked.sendall(b"show stat\n")
        text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
    rows = (line.split(",") for line in text.splitlines())
    return [line[17] for line in rows if line[0] == "http-a" and line[1] != "BACKEND"]


def test_what_one_engine_keeps_is_found_by_many_at_a_time(program: str, tmp_path: Path) -> None:
    with row(program, tmp_path) as client, ThreadPoolExecutor(TOGETHER) as pool:

        def ask(number: int) -> tuple[int, object]:
            kept = f"resp_{number % len(HOSTS)}"
            answer = (
                client.get(f"/v1/responses/{kept}?stream=false"),
                client.post(f"/v1/responses/{kept}/cancel"),
                client.post("/v1/responses", json={"previous_response_id": kept}),
            )[number % 3]
            return answer.status_code, answer.json().get("id") == kept

        assert set(pool.map(ask, range(ASKED))) == {(200, True)}


def test_an_engine_is_asked_though_it_seems_to_be_down(program: str, tmp_path: Path) -> None:
    with row(program, tmp_path, down=HOSTS[1:3]) as client:
        for number in range(len(HOSTS)):
            answer = client.get(f"/v1/responses/resp_{number}")
            assert (answer.status_code, answer.json()) == (200, {"id": f"resp_{number}"})


def test_nobody_says_that_there_is_none_before_all_were_asked(program: str, tmp_path: Path) -> None:
    with row(program, tmp_path, gone=HOSTS[3:4]) as client:
        assert client.get("/v1/responses/resp_1").status_code == 200
        answer = client.get("/v1/responses/resp_nope")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, str(RETRY_S))
        assert "is silent" in answer.json()["error"]["message"]


def test_an_answer_that_nobody_has_is_refused_in_an_engines_words(
    program: str, tmp_path: Path
) -> None:
    with row(program, tmp_path, bare=[h for h in HOSTS if h != "127.0.0.3"]) as client:
        for answer in (
            client.get("/v1/responses/resp_nope"),
            client.post("/v1/responses/resp_nope/cancel"),
            client.post("/v1/responses", json={"previous_response_id": "resp_nope"}),
        ):
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                404,
                "not found here",
            )


@pytest.mark.parametrize("wrong", ["", "resp_1/../resp_2", "a b", "resp_1\r\nx: y", "é", "[]"])
def test_what_is_no_id_is_left_to_the_model(program: str, tmp_path: Path, wrong: str) -> None:
    with row(program, tmp_path) as client:
        body = {"previous_response_id": wrong} if wrong else {}
        answer = client.post("/v1/responses", json=body)
        assert answer.status_code == (404 if wrong else 200)
        answer = client.get(f"/v1/responses/{quote(wrong, safe='') or 'x'}")
        assert answer.status_code == 404
