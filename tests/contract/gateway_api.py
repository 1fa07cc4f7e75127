"""What the tests of the gateway share: a small server in the place of Serve, and a folder."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.contract.sshd import wait_for


class Api(BaseHTTPRequestHandler):
    """Tells what it was sent; /v1/stream goes on only when the test says so."""

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()

    def do_GET(self) -> None:
        """Answer with path and headers, or in two chunks."""
        if self.path == "/v1/stream":
            self._stream()
            return
        if self.headers.get("Upgrade") == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self.wfile.write(self.rfile.read(4)[::-1])
            self.close_connection = True
            return
        body = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
        said = re.fullmatch(r"/v1/say/([0-9]+)(?:\?retry-after=(.*))?", self.path)
        self.send_response(int(said[1]) if said else 200)
        if said and said[2]:
            self.send_header("Retry-After", said[2])
        if self.path == "/v1/browser":
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Credentials", "true")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Take the body and answer like GET."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in (b"5\r\nfirst\r\n", b"6\r\nsecond\r\n0\r\n\r\n"):
            self.wfile.write(chunk)
            self.wfile.flush()
            assert self.go_on.wait(30)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def api() -> Iterator[int]:
    """The port of a server that stands for Serve."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nginx's workers, who are another user, cannot pass through."""
    folder = tmp_path_factory.mktemp("gateway")
    folder.chmod(0o700)
    return folder


def processes(root: Path) -> list[Path]:
    """Return nginx's processes, as folders of /proc."""
    pid = root / "gateway/nginx.pid"
    wait_for(lambda: pid.exists() and bool(pid.read_text().strip()), "nginx's number")
    master = pid.read_text().strip()
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    every = [Path(f"/proc/{pid}") for pid in (master, *children)]
    return [each for each in every if (each / "comm").read_text() == "nginx\n"]  # not who prunes
