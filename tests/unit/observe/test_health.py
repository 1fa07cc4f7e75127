"""What `status` makes of endpoints that answer, or do not, whatever Ray says of them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from raycluster.core.errors import RayclusterError
from raycluster.core.interfaces import Found, Runtime, Secret
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe import health
from raycluster.observe.diagnosis import Health
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica

Answer = Callable[[str], tuple[int, bytes]]
"""Path -> status and body."""

REPORT = {"model": "m", "engine": "vllm", "reason": "", "seconds": {}, "pid": 1}


def serving(path: str) -> tuple[int, bytes]:
    return 200, json.dumps(REPORT if path.endswith("/engine") else {}).encode()


class OneHost:
    """A fleet of this machine."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.only = Connected(spec.hosts[0], LocalTransport("head"), cast("Runtime", None))

    def each(self, names: Any, work: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            try:
                found[name] = work(self.only)
            except RayclusterError as error:
                found[name] = error
        return found

    def __getitem__(self, name: str) -> Connected:
        return self.only


@pytest.fixture
def listen() -> Iterator[Callable[[Answer], int]]:
    """Start servers that answer so; return their ports."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def closed() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def look(monkeypatch: pytest.MonkeyPatch, api: int, gateway: int = 0, *, asleep: bool) -> Health:
    """Look at a cluster with which all checks passed as far as Ray knows."""
    told: dict[str, Any] = {
        "cluster": {"name": "q"},
        "head": {"host": "h"},
        "models": [{"name": "m", "replicas": {"min": 0, "max": 1}}],
        "ports": {"api": api, **({"gateway": gateway} if gateway else {})},
    }
    spec = ClusterSpec.model_validate(told | ({"gateway": {}} if gateway else {}))
    roles = ("head", "gateway") if gateway else ("head",)
    found = tuple(Found(role, "1", "running") for role in roles)
    replicas = () if asleep else (Replica("r", "RUNNING"),)
    state = ClusterState(
        {"head": HostState("head", "h", found)},
        nodes=(RayNode("h", "n", alive=True, is_head=True),),
        apps=(App("m", "RUNNING", replicas=replicas),),
        token=Secret("t"),
    )
    monkeypatch.setattr(health, "observe", lambda *_: state)
    monkeypatch.setattr(health, "_usage", lambda *_: {})
    return health.look(spec, cast("Fleet", OneHost(spec)))


@pytest.mark.parametrize("asleep", [False, True])
def test_a_model_that_answers_is_well(
    asleep: bool, listen: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(monkeypatch, listen(serving), listen(serving), asleep=asleep).problems == ()


@pytest.mark.parametrize("asleep", [False, True])
def test_an_endpoint_where_nobody_listens_is_told(
    asleep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    [problem] = look(monkeypatch, closed(), asleep=asleep).problems
    assert problem.where == "m"
    assert problem.what.startswith("its endpoint does not respond: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, b""), "its endpoint responds with 503"),
        ((200, b"<html>"), "its endpoint responds, but "),
    ],
)
def test_an_endpoint_that_serves_nothing_is_told(
    answer: tuple[int, bytes],
    said: str,
    listen: Callable[[Answer], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [problem] = look(monkeypatch, listen(lambda _: answer), asleep=False).problems
    assert problem.what.startswith(said)


def test_a_model_that_sleeps_is_not_woken(
    listen: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 503, b""

    assert look(monkeypatch, listen(note), asleep=True).problems == ()
    assert asked == ["/-/healthz"]


def test_a_gateway_that_runs_and_does_not_answer_is_told(
    listen: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    [problem] = look(monkeypatch, listen(serving), closed(), asleep=False).problems
    assert problem.where == "head"
    assert problem.what.startswith("the gateway does not respond at http://127.0.0.1:")
    assert problem.hint == "raycluster logs head/gateway"
