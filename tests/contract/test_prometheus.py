"""The question that `status` asks a real Prometheus, over figures in the form of Ray's exporter."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from raycluster.core.wait import wait_for
from raycluster.serve.metrics import Metrics, samples
from raycluster.status.figures import Told
from raycluster.status.prometheus import QUERY, ask
from tests.ports import free_ports

TICK_S = 0.1


class Load:
    """A replica that answers requests of three tokens all the time, and what Ray makes of it.

    With every request it is asked once whether it is ready.
    """

    def __init__(self, model: str, out: CollectorRegistry, gauges: dict[str, Gauge]) -> None:
        self._model = model
        self._out = out
        self._gauges = gauges
        self._own = CollectorRegistry()
        self._metrics = Metrics(model, self._own)
        self._tokens = Counter(
            "vllm:generation_tokens", "", ("model_name", "engine"), registry=self._own
        )

    def step(self) -> None:
        """Answer one request."""
        self._metrics.ended("vllm", "/v1/completions", 200, 0.5)
        self._metrics.ended("vllm", "/v1/models", 200, 0.1)
        self._metrics.first_token("vllm", "/v1/completions", 0.05)
        self._tokens.labels(self._model, "0").inc(3 + 1)
        self._metrics.asked("vllm")
        for name, told, labels, value in samples(self._own):
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"ray_{name}", told, tuple(labels), registry=self._out)
            self._gauges[name].labels(**labels).set(value)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus that asks every second, and two models under load."""
    if not (program := shutil.which("prometheus", path="/usr/bin:/usr/local/bin")):
        pytest.skip("needs prometheus: `make test` as root installs it")
    own, exporter = free_ports(2)
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    registry, gauges = CollectorRegistry(), dict[str, Gauge]()
    loads = [Load(model, registry, gauges) for model in ("one", "two")]
    server, thread = start_http_server(exporter, "127.0.0.1", registry)
    stop = Event()

    def run() -> None:
        while not stop.wait(TICK_S):
            for load in loads:
                load.step()

    worker = Thread(target=run)
    worker.start()
    argv = [program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{own}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", trust_env=False) as client:
            yield client
    finally:
        stop.set()
        worker.join()
        process.terminate()
        process.wait(20)
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_question_tells_all_figures_of_all_models(prometheus: httpx.Client) -> None:
    def told() -> dict[str, Told] | None:
        try:
            found = dict(ask(prometheus))
        except httpx.HTTPError:
            return None
        return found if len(found) == 2 and found["one"].first_token.p95 is not None else None

    found = wait_for(told, timeout=60)
    assert found, prometheus.get("/api/v1/query", params={"query": QUERY}).text
    for model in ("one", "two"):
        rates, latency = found[model].rates, found[model].first_token
        assert rates.requests is not None
        assert rates.tokens is not None
        assert 0 < rates.requests <= 1 / TICK_S * 1.2
        assert 2 < rates.tokens / rates.requests < 4  # three, of requests that clients sent
        assert rates.errors == 0
        assert latency.p50 is not None
        assert 0.04 <= latency.p50 <= 0.06  # the bucket that holds 0.05 s
