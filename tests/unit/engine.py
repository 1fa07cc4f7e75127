"""Replicas as `bench` finds them: figures of vLLM's names, kept and served as vLLM keeps them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from raycluster.serve.metrics import Metrics
from raycluster.serve.metrics_history import MetricsHistory
from raycluster.serve.settings import AGE_HEADER, EARLIER_PATH
from raycluster.spec import ClusterSpec
from tests.ports import ports_in_a_row

LABELS = ("model_name", "engine")


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""


class Engine:
    """The figures of one replica, served at `port`."""

    def __init__(self, port: int, model: str = "tiny") -> None:
        registry = CollectorRegistry(auto_describe=True)  # as the one of a process
        ProcessCollector(registry=registry)
        self.running: Any = Gauge("vllm:num_requests_running", "", LABELS, registry=registry)
        self.tokens: Any = Counter("vllm:generation_tokens", "", LABELS, registry=registry)
        self.done: Any = Counter("vllm:request_success", "", LABELS, registry=registry)
        self.ours = Metrics(model, registry)
        self._labels = (model, "0")
        self.took(0)
        self.now = 0.0
        self.recent = MetricsHistory(registry, lambda: self.now)
        self._metrics = make_wsgi_app(registry)
        self.server = make_server(
            "127.0.0.1", port, self._answer, ThreadingWSGIServer, handler_class=_Silent
        )
        self._thread = Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: Any, start: Any) -> Any:
        """Answer as a replica does; one that kept no figures has no path for them."""
        if environ["PATH_INFO"] != EARLIER_PATH:
            return self._metrics(environ, start)
        if (kept := self.recent.earliest()) is None:
            start("404 Not Found", [])
            return [b""]
        start("200 OK", [(AGE_HEADER, f"{kept[0]:.3f}")])
        return [kept[1]]

    def took(self, requests: int, *, running: int = 0, first: float | None = None) -> None:
        """Count requests of ten tokens each; `first`: streams, with the seconds to the first."""
        self.running.labels(*self._labels).set(running)
        self.tokens.labels(*self._labels).inc(10 * requests)
        self.done.labels(*self._labels).inc(requests)
        for _ in range(requests):
            self.ours.ended("vllm", "/v1/completions", 200, 0.1)
            if first is not None:
                self.ours.first_token("vllm", "/v1/completions", first)

    def ask_ready(self) -> None:
        """Count the token of the question whether it is ready."""
        self.tokens.labels(*self._labels).inc()
        self.ours.asked("vllm")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@contextmanager
def engines(*ports: int, model: str = "tiny") -> Iterator[list[Engine]]:
    made = [Engine(port, model) for port in ports]
    try:
        yield made
    finally:
        for engine in made:
            engine.close()


class Ports:
    """Free ports: of replicas, their engines and their gRPC three each, and the node's own."""

    def __init__(self) -> None:
        ports = ports_in_a_row(10)
        self.http = ports[:3]
        self.replicas = ports[:9]
        self.metrics = ports[9]

    def spec(
        self, gpus: int | str = 0, metrics: int = 0, head: Mapping[str, object] | None = None
    ) -> ClusterSpec:
        """Return a cluster's, whose head is this machine unless told otherwise."""
        return ClusterSpec.model_validate(
            {
                "cluster": {"name": "scraped"},
                "runtime": {"kind": "native", "python": sys.executable},
                "head": {**(head or {"transport": "local"}), "gpus": gpus},
                "models": [{"name": "tiny", "adapters": {"tiny-lora": "/lora"}}],
                "ports": {
                    "metrics": metrics or self.metrics,
                    "replica_min": self.replicas[0],
                    "replica_max": self.replicas[-1],
                },
            }
        )
