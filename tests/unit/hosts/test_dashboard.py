"""Ray's token: to the head's own process, and to nobody who holds its port meanwhile."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raycluster.core.errors import HostError, PortInUseError
from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts.dashboard import dashboard, holders, taken
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.ray_api import RayApi
from raycluster.observe.cluster import observe
from raycluster.observe.diagnosis import diagnose
from raycluster.observe.facts import read_facts
from raycluster.spec import ClusterSpec

NOBODY = 65534
TOKEN = Secret("e" * 64)
HEAD = """
import http.server, sys
class Dashboard(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        answer = b'{"applications": {"%s": {}}}' % self.headers["Authorization"][-3:].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Dashboard).serve_forever()
"""
FILES = {"token": b"e" * 64, "members.json": b"[]"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's socket: needs root")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterSpec:
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    document: dict[str, Any] = {
        "cluster": {"name": "c"},
        "runtime": {"kind": "native", "python": sys.executable, "start_on_boot": False},
        "head": {"transport": "local"},
        "ports": {"dashboard": port},
    }
    return ClusterSpec(**document)


@contextmanager
def head(spec: ClusterSpec, *argv: str) -> Iterator[tuple[Fleet, Connected]]:
    """Run something as the head."""
    with Fleet("c", 1) as fleet:
        box = fleet.open(spec.hosts[0])
        try:
            box.runtime.start(Process("head", argv), Versions(), FILES, lambda _: None)
            yield fleet, box
        finally:
            box.runtime.remove()


@contextmanager
def somebody(port: int) -> Iterator[list[bytes]]:
    """Listen on a port as another user; what came is there in the end."""
    heard: list[bytes] = []
    near, far = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            server = socket.create_server(("127.0.0.1", port), backlog=64)
            os.write(far, b"+")
            while True:
                taken, _ = server.accept()
                os.write(far, taken.recv(10_000))
        finally:
            os._exit(0)
    os.close(far)
    with os.fdopen(near, "rb", 0) as file:
        assert file.read(1) == b"+"
        try:
            yield heard
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        heard.append(file.read())


def test_the_head_is_asked_with_the_token(spec: ClusterSpec) -> None:
    port = spec.ports.dashboard
    with (
        head(spec, sys.executable, "-c", HEAD, str(port)) as (_, box),
        dashboard(box, port, TOKEN) as client,
    ):
        api = RayApi("box", client)
        while not (apps := _apps(api)):
            pass
        assert apps == ("eee",)
        assert taken(box, port) is None


def _apps(api: RayApi) -> tuple[str, ...]:
    try:
        return tuple(app.name for app in api.apps())
    except HostError as error:
        assert "Connection refused" in error.what
        return ()


@as_root
@pytest.mark.parametrize("argv", [("sleep", "1000"), ("false",)], ids=["running", "restarting"])
def test_who_holds_its_port_is_named_and_told_nothing(
    spec: ClusterSpec, argv: tuple[str, ...]
) -> None:
    port = spec.ports.dashboard
    what = f"port {port} is in use by nobody (uid {NOBODY}), not by the head"
    with head(spec, *argv) as (fleet, box), somebody(port) as heard:
        assert holders(box.transport, port) == (f"nobody (uid {NOBODY})",)
        assert read_facts(box.transport).holders[port] == f"nobody (uid {NOBODY})"
        state = observe(spec, fleet)
        assert isinstance(state.head_problem, PortInUseError)
        assert state.head_problem.what == what
        told = {problem.what: problem.hint for problem in diagnose(spec, state, ())}
        assert "set `ports.dashboard`" in told[what]
        assert str(taken(box, port)).startswith(f"{spec.hosts[0].name}: {what}")
        if argv[0] == "sleep":  # any question at all
            with dashboard(box, port, TOKEN) as client, pytest.raises(PortInUseError):
                client.put("/", json={})
    assert heard == [b""]
