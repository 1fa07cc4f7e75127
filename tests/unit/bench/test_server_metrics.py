"""What `bench` sees of servers, through real HTTP and on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raycluster.bench import server_metrics
from raycluster.bench.server import Look, ServerFigures
from raycluster.hosts.fleet import Fleet
from raycluster.observe import replica_endpoints
from raycluster.openai_client.target import Target
from raycluster.spec import ClusterSpec
from tests.ports import free_ports
from tests.unit.engine import Ports, engines

NODE = (Path(__file__).parents[1] / "data" / "node.txt").read_text()


@contextmanager
def answering(text: str, status: int = 200) -> Iterator[tuple[int, list[str]]]:
    """Answer every GET with the text; yields the port and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


@contextmanager
def watching(
    spec: ClusterSpec, served: str = "tiny"
) -> Iterator[tuple[server_metrics.MetricsWatcher, list[str]]]:
    told: list[str] = []
    with (
        Fleet("scraped", 4) as fleet,
        server_metrics.of_cluster(spec, fleet, served, told.append) as watcher,
    ):
        yield watcher, told


def ended(watcher: server_metrics.MetricsWatcher) -> ServerFigures:
    server = watcher.end(time.monotonic())
    assert server is not None
    return server


def test_watches_the_server_behind_an_address() -> None:
    [port] = free_ports(1)
    target = Target(f"http://127.0.0.1:{port}/v1", "any")
    with engines(port) as [engine], server_metrics.of_url(target, pytest.fail) as watcher:
        engine.took(100)
        watcher.begin()
        engine.took(3, running=2)
        server = ended(watcher)
        assert (server.requests, server.generation_tokens) == (3, 30)
        assert [replica.place for replica in server.replicas] == [target.shown]
        watcher.begin()
        assert ended(watcher).requests == 0


@pytest.mark.parametrize(
    ("text", "status"), [("", 200), ("<p>hello</p>", 200), ("no", 404), ("vllm:num_requests_", 200)]
)
def test_a_server_without_figures_is_asked_before_the_level_and_not_again(
    text: str, status: int
) -> None:
    with answering(text, status) as (port, asked):
        target = Target(f"http://127.0.0.1:{port}", "any")
        with server_metrics.of_url(target, pytest.fail) as watcher:
            watcher.begin()
            assert watcher.end(time.monotonic()) is None
    paths = [path.partition("?")[0] for path in asked]
    assert paths == (["/metrics/", "/metrics"] if status == 404 else ["/metrics/"])
    assert re.search(r"\?name%5B%5D=vllm%3A\w+&name", asked[0])


def test_nobody_at_an_address_is_no_error() -> None:
    [port] = free_ports(1)
    with server_metrics.of_url(Target(f"http://127.0.0.1:{port}", "any"), pytest.fail) as watcher:
        watcher.begin()
        assert watcher.end(time.monotonic()) is None


def test_finds_and_adds_up_the_replicas_of_a_model() -> None:
    ports = Ports()
    with (
        engines(ports.http[0], ports.http[2]) as [one, two],
        engines(ports.http[1], model="other") as [other],
        watching(ports.spec(), "tiny-lora") as (watcher, told),
    ):
        watcher.begin()
        for engine, count in ((one, 5), (two, 2), (other, 50)):
            engine.took(count, running=count)
        server = ended(watcher)
    assert [(r.place, r.requests) for r in server.replicas] == [
        (f"head:{ports.http[0]}", 5),
        (f"head:{ports.http[2]}", 2),
    ]
    assert (server.generation_tokens, server.most_replicas, server.unanswered) == (70, 2, 0)
    assert told == []


def test_looks_again_and_again_beside_the_caller() -> None:
    ports = Ports()
    with engines(ports.http[0]) as [engine], watching(ports.spec()) as (watcher, _):
        watcher.period = 0.05
        watcher.begin()
        origin = time.monotonic()
        engine.took(1, running=3)
        end = time.monotonic() + 30
        while len(watcher._looks) < 10:
            assert time.monotonic() < end
            time.sleep(0.05)
        engine.took(1)
        server = watcher.end(origin)
    assert server is not None
    assert len(server.samples) > 8
    assert [sample.t for sample in server.samples] == sorted(s.t for s in server.samples)
    assert server.running is not None
    assert server.running.max == 3.0
    assert server.requests == 2


def test_a_replica_that_ends_is_missed() -> None:
    ports = Ports()
    with watching(ports.spec()) as (watcher, told):
        with engines(ports.http[0]):
            with engines(ports.http[1]) as [going]:
                watcher.begin()
                going.took(4)
            server = ended(watcher)
        assert [(r.place, r.went is None) for r in server.replicas] == [
            (f"head:{ports.http[0]}", True),
            (f"head:{ports.http[1]}", False),
        ]
        assert (server.fewest_replicas, server.most_replicas) == (1, 2)
        watcher.begin()
        assert watcher.end(time.monotonic()) is None  # nobody is left
    assert told == []


def test_reads_gpus_from_the_node_and_not_too_often() -> None:
    ports = Ports()
    with (
        answering(NODE) as (metrics, asked),
        engines(ports.http[0]),
        watching(ports.spec("all", metrics)) as (watcher, told),
    ):
        watcher.begin()
        server = ended(watcher)
    assert {sample.gpu_utilization for sample in server.samples} == {0.465}
    assert {sample.gpu_memory_bytes for sample in server.samples} == {73728.0 * 2**20}
    assert (asked, told) == (["/metrics"], [])


def test_a_node_without_gpus_is_asked_once() -> None:
    ports = Ports()
    with (
        answering("ray_node_cpu_utilization 5.0\n") as (metrics, asked),
        engines(ports.http[0]),
        watching(ports.spec("all", metrics)) as (watcher, _),
    ):
        for _ in range(3):
            watcher.begin()
            assert ended(watcher).gpus == ()
    assert asked == ["/metrics"]


def test_a_silent_node_is_told_once_and_costs_no_figure() -> None:
    ports = Ports()
    with engines(ports.http[0]) as [engine], watching(ports.spec("all")) as (watcher, told):
        watcher.begin()
        engine.took(2)
        server = ended(watcher)
        watcher.begin()
        ended(watcher)
    assert (server.requests, server.unanswered) == (2, 1)
    assert len(told) == 1
    assert told[0].startswith("head: its metrics cannot be collected: ")


def test_whatever_goes_wrong_the_run_goes_on() -> None:
    told: list[str] = []

    def look(closely: bool) -> Look:
        raise ZeroDivisionError("oh")

    watcher = server_metrics.MetricsWatcher(look, told.append)
    watcher.begin()
    assert watcher.end(0.0) is None
    assert told == ["the servers' metrics cannot be read: ZeroDivisionError: oh"]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("0100007F:7530", {30000: "http://127.0.0.1:30000"}),
        ("0502000A:7530 0100007F:7530", {30000: "http://127.0.0.1:30000"}),
        ("00000000000000000000000000000000:7530", {30000: "http://127.0.0.1:30000"}),
        ("00000000000000000000000001000000:7531", {30001: "http://[::1]:30001"}),
        (
            "0100007F:7530 00000000000000000000000001000000:7530",
            {30000: "http://127.0.0.1:30000"},
        ),
        ("", {}),
    ],
)
def test_reads_the_kernels_table_of_listeners(table: str, found: dict[int, str]) -> None:
    assert dict(replica_endpoints.listening(table)) == found
