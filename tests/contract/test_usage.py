"""What `usage` asks a real Prometheus, over figures in the form of Ray's exporter."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge, Metric, start_http_server

from raycluster.core.wait import wait_for
from raycluster.spec import ClusterSpec
from raycluster.status.usage import REQUESTS, TOKENS, Row, UsageReport, ask
from tests.ports import free_ports

SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h", "price_per_hour": 360}}
)
HOUR = 3600


class Replicas:
    """Counters as Ray's exporter shows them: a label tells replicas apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._changing = threading.Lock()
        self._tokens = Gauge(TOKENS, "", ("model", "owner", "kind", "WorkerId"), registry=None)
        self._requests = Gauge(REQUESTS, "", ("model", "owner", "WorkerId"), registry=None)
        self.registry.register(self)

    def collect(self) -> list[Metric]:
        """Show all requests with all their tokens."""
        with self._changing:
            return [*self._tokens.collect(), *self._requests.collect()]

    def took(self, worker: str, owner: str, model: str, *tokens: int) -> None:
        """Count a request."""
        with self._changing:
            self._requests.labels(model, owner, worker).inc()
            for kind, number in zip(("prompt", "cached", "generation"), tokens, strict=True):
                self._tokens.labels(model, owner, kind, worker).inc(number)

    def end(self) -> None:
        """Show nothing any more."""
        with self._changing:
            self._tokens.clear()
            self._requests.clear()


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
def prometheus(tmp_path: Path, replicas: Replicas) -> Iterator[httpx.Client]:
    """A Prometheus that asks every second."""
    if not (program := shutil.which("prometheus", path="/usr/bin:/usr/local/bin")):
        pytest.skip("needs prometheus: `make test` as root installs it")
    own, exporter = free_ports(2)
    target = {"targets": [f"127.0.0.1:{exporter}"], "labels": {"node": "head"}}
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    server, thread = start_http_server(exporter, "127.0.0.1", replicas.registry)
    argv = [program, "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    argv.append(f"--web.listen-address=127.0.0.1:{own}")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        server.server_close()
        thread.join()


def plain(found: UsageReport) -> list[tuple[str, str, int, int, int, int]]:
    return [(r.owner, r.model, r.requests, r.prompt, r.cached, r.generation) for r in found.rows]


def test_what_was_counted_is_summed_exactly(replicas: Replicas, prometheus: httpx.Client) -> None:
    replicas.took("w1", "alice", "a", 1001, 7, 3)
    replicas.took("w1", "alice", "a", 10, 0, 5)
    replicas.took("w2", "alice", "a", 100, 50, 70)
    replicas.took("w2", "bob", "a", 1, 0, 1)
    replicas.took("w2", "-", "b", 2, 0, 2)
    first = [
        ("-", "b", 1, 2, 0, 2),
        ("alice", "a", 3, 1111, 57, 78),
        ("bob", "a", 1, 1, 0, 1),
    ]

    def told() -> UsageReport | None:
        try:
            found = ask(prometheus, SPEC, HOUR)
        except httpx.HTTPError:
            return None
        return found if plain(found) == first else None

    found = wait_for(told, timeout=60)
    assert found
    replicas.end()
    replicas.took("w3", "alice", "a", 4, 4, 1)

    def again() -> UsageReport | None:
        found = ask(prometheus, SPEC, HOUR)
        return found if found.total.requests == 6 else None

    later = wait_for(again, timeout=60)
    assert later
    assert plain(later)[1] == ("alice", "a", 4, 1115, 61, 79)
    by_key, by_model = (ask(prometheus, SPEC, HOUR, by) for by in ("key", "model"))
    assert [row[0] for row in plain(by_key)] == ["-", "alice", "bob"]
    assert plain(by_model) == [("", "a", 5, 1116, 61, 80), ("", "b", 1, 2, 0, 2)]
    assert later.cost is not None
    assert later.cost > 0
    assert sum(row.cost or 0 for row in later.rows) == pytest.approx(later.cost)
    assert later.per_million == pytest.approx(later.cost / (1118 - 61 + 82) * 1e6)

    def recent() -> bool | None:
        found = ask(prometheus, SPEC, 2)
        return all(not row.requests for row in found.rows) or None

    assert wait_for(recent, timeout=60), "what is over is not counted again"


def test_without_prices_there_is_no_money(replicas: Replicas, prometheus: httpx.Client) -> None:
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}})

    def ready() -> UsageReport | None:
        try:
            return ask(prometheus, spec, HOUR)
        except httpx.HTTPError:
            return None

    found = wait_for(ready, timeout=60)
    assert found == UsageReport((), HOUR, "USD", None)
    assert found.total == Row()
    assert found.per_million is None
