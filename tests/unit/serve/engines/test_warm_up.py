"""What a server of a few lines is asked before it serves."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raycluster.serve.engines import warm_up as module
from raycluster.serve.engines.server import Place, Server, ServerEndedError
from raycluster.serve.engines.warm_up import KINDS, warm_up
from tests.ports import free_ports

PROGRAM = """
import http.server, json, os, sys, time
port, kept, answers = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
said = (b'{"usage": {"completion_tokens": 2}}', b"no more memory")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        with open(kept, "a") as file:
            print(json.dumps([self.path, json.loads(body)]), file=file)
        answer = answers.get(self.path, 404)
        if answer == "ends":
            os._exit(3)
        if answer == "hangs":
            time.sleep(600)
        self.send_response(answer); self.end_headers(); self.wfile.write(said[answer != 200])
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def asked(
    tmp_path: Path, answers: Mapping[str, int | str], tokens: list[int] | None = None
) -> list[Any]:
    """Warm up a server that answers so, and return what it was asked; add the `tokens` it made."""
    [port] = free_ports(1)
    kept = tmp_path / "asked"
    argv = [sys.executable, "-c", PROGRAM, str(port), str(kept), json.dumps(answers)]

    async def run() -> None:
        server = Server(argv, dict(os.environ), Place("127.0.0.1", port))
        try:
            await server.start()
            made = await warm_up(server, "m")
            if tokens is not None:
                tokens.append(made)
        finally:
            await server.stop()

    try:
        asyncio.run(run())
    finally:
        lines = kept.read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_model_that_generates_is_asked_each_kind(tmp_path: Path, status: int) -> None:
    tokens: list[int] = []
    found = asked(tmp_path, {"/v1/completions": status}, tokens)
    assert tokens == [2 * len(KINDS) if status == 200 else 0]
    assert [path for path, _ in found] == ["/v1/completions"] * len(KINDS)
    for (_, body), more in zip(found, KINDS.values(), strict=True):
        assert body == {"model": "m", "prompt": "a", "max_tokens": 2, **more}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/pooling"])
def test_a_model_that_does_not_generate_is_asked_once(tmp_path: Path, path: str) -> None:
    *refused, (answered, _) = asked(tmp_path, {path: 200})
    assert answered == path
    assert path not in [other for other, _ in refused]


def test_a_refused_kind_is_nothing_to_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked(tmp_path, {"/v1/completions": 400})
    assert caplog.text == ""


def test_a_failed_kind_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked(tmp_path, {"/v1/completions": 500})
    assert "the first request of its kind (logprobs) failed: 500: no more memory" in caplog.text


def test_a_server_that_hangs_is_left_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_S", 1.0)
    assert len(asked(tmp_path, {"/v1/completions": "hangs"})) == 1
    assert "the first request of its kind (greedy) failed: no answer in 1 s" in caplog.text


def test_a_server_that_ends_of_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ServerEndedError) as error:
        asked(tmp_path, {"/v1/completions": "ends"})
    assert error.value.code == 3
