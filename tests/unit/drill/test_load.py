"""The load against a real server that fails in all the ways that servers do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from raycluster.drill.load import DrillRequest, SteadyLoad
from raycluster.openai_client.target import Target
from tests.local.cluster import until

DONE = b'data: {"choices": []}\n\ndata: [DONE]\n\n'


class Server(BaseHTTPRequestHandler):
    """Answers as `how` says: well, with 503, cut in the middle, or with what is no completion."""

    how = "well"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = DONE if asked["stream"] else b'{"choices": [{"text": ""}]}'
        if self.how == "nonsense":
            body = b"data: {}\n\n" if asked["stream"] else b"<html>"
        self.send_response(503 if self.how == "503" else 200)
        self.send_header("Content-Length", str(len(body) + (self.how == "cut")))
        self.send_header("X-Raycluster-Retried", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Listener(ThreadingHTTPServer):
    request_queue_size = 128  # of five, a busy machine resets connections


@contextmanager
def serving(how: str) -> Iterator[Target]:
    """Yield the address of a server that answers in this way."""
    handler = type("Handler", (Server,), {"how": how})
    with Listener(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield Target(f"http://127.0.0.1:{server.server_address[1]}", "m")
        finally:
            server.shutdown()
            thread.join()


def nobody() -> Target:
    """Return an address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Target(f"http://127.0.0.1:{probe.getsockname()[1]}", "m")


def answers(*targets: Target) -> list[DrillRequest]:
    """Return what a short load got."""
    with SteadyLoad(targets, rate=100) as load:
        until(lambda: len(load.answers) >= 10, seconds=20, what="no ten answers")
    assert load.waiting == {}
    return load.answers


def test_whole_answers_are_fine_and_every_fifth_is_a_stream() -> None:
    with serving("well") as target:
        got = answers(target)
    assert all(a.ok and a.status == 200 and a.retried and a.tried == 1 for a in got)
    assert sum(a.stream for a in got) == len(got) // 5


def test_a_status_is_a_failure() -> None:
    with serving("503") as target:
        assert {(a.ok, a.status, a.truncated) for a in answers(target)} == {(False, 503, False)}


def test_a_cut_answer_is_truncated() -> None:
    with serving("cut") as target:
        assert all(a.truncated and not a.ok for a in answers(target))


def test_what_is_no_completion_is_a_failure() -> None:
    with serving("nonsense") as target:
        got = answers(target)
    assert not any(a.ok for a in got)
    assert all(a.truncated == a.stream for a in got)


def test_where_nobody_listens_the_next_is_asked() -> None:
    with serving("well") as target:
        assert all(a.ok and a.tried == 2 for a in answers(nobody(), target))
    assert all(not a.ok and a.status is None for a in answers(nobody()))
