"""Handing the app to Serve without raycluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from raycluster.serve import send_app
from raycluster.serve.send_app import AnsweredError, Ask, RefusedError, send

BODY = json.dumps({"applications": [{"name": "a"}, {"name": "b"}]}).encode()


def answering(*answers: object) -> Ask:
    """Return what gives one answer after another; an exception is raised."""
    left: Iterator[object] = iter(answers)

    def ask(method: str, body: bytes | None) -> bytes:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    return ask


def status(**told: str) -> dict[str, object]:
    apps = {name: {"status": word, "message": f"{name} said"} for name, word in told.items()}
    return {"applications": apps}


def refusal(code: int) -> AnsweredError:
    return AnsweredError(code, "Error: no such field")


def sent(*answers: object, timeout: float = 30, ready: float = 30) -> list[str]:
    """Return the lines that were told."""
    lines: list[str] = []
    send(answering(*answers), BODY, timeout, ready=ready, pause=0, tell=lines.append)
    return lines


def test_it_waits_until_every_application_runs() -> None:
    lines = sent(
        OSError("refused"),
        refusal(500),
        {},
        status(a="DEPLOYING"),
        OSError("busy"),
        status(a="RUNNING", b="DEPLOYING"),
        status(a="RUNNING", b="RUNNING"),
    )
    assert lines == ["a: deploying", "b: not_started", "a: running", "b: deploying", "b: running"]


def test_a_failed_application_ends_it_with_the_root_cause() -> None:
    with pytest.raises(RefusedError, match="b: b said"):
        sent({}, status(a="RUNNING", b="DEPLOY_FAILED"))


def test_a_refused_body_is_not_sent_again() -> None:
    with pytest.raises(RefusedError, match="no such field"):
        sent(refusal(400))


def test_time_runs_out() -> None:
    with pytest.raises(RefusedError, match="does not accept the app within 0 s: refused"):
        sent(OSError("refused"), ready=0)
    with pytest.raises(RefusedError, match="are not running within 0 s"):
        sent({}, status(a="DEPLOYING"), timeout=0)


def test_it_speaks_http_with_the_tokens_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str, str | None]] = []

    class Dashboard(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(status(a="RUNNING", b="RUNNING")).encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "app.json").write_bytes(BODY)
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        url = f"--dashboard=http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("sys.argv", ["send_app", str(tmp_path / "app.json"), url])
        send_app.main()
        server.shutdown()
    path = "/api/serve/applications/"
    assert seen == [("PUT", path, "Bearer secret"), ("GET", path, "Bearer secret")]
    assert capsys.readouterr().out == "a: running\nb: running\n"
