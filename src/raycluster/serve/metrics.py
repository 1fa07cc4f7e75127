"""Our own figures of one replica, and the way of all its figures to the node's exporter.

They are kept in prometheus_client's registry, beside vLLM's. `Mirror` copies the registry to Ray
every few seconds: what Ray's own metrics would cost for each token is never paid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

PERIOD_S = 5.0
PREFIXES = ("raycluster_", "vllm:")
FIRST_ANSWER = "raycluster_time_to_first_token_seconds"

FIRST_TOKEN_BUCKETS = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
DURATION_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0),
    *(15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)

logger = logging.getLogger("ray.serve")


Sample = tuple[str, str, dict[str, str], float]
"""Name, help, labels and value."""

EXPOSED = (
    *("raycluster_readiness_tokens", "raycluster_engine_info"),
    *("raycluster_engine_fallbacks", "raycluster_engine_start_seconds"),
)
"""What a replica counts itself of an engine whose server counts its clients."""


class Point(Protocol):
    """One series of a metric that `Mirror` copies to: Ray's Gauge."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Metrics:
    """The figures that neither vLLM nor Serve has; docs/metrics.md says what each means."""

    def __init__(self, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._model = model
        self._requests = Counter(
            "raycluster_requests",
            "Requests to the API that have ended; status 499: the client left before the end.",
            ("model", "engine", "endpoint", "status"),
            registry=registry,
        )
        self._first = Histogram(
            FIRST_ANSWER,
            "From a request's arrival at the replica to the first event of its streamed answer,"
            " which carries the first token's text or, in a chat, the role that precedes it.",
            ("model", "engine", "endpoint"),
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "raycluster_request_duration_seconds",
            "From a request's arrival at the replica to the end of its answer.",
            ("model", "engine", "endpoint"),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "raycluster_tokens",
            "Tokens of requests that have ended, of engines that do not count them themselves.",
            ("model", "engine", "kind"),
            registry=registry,
        )
        self._readiness = Counter(
            "raycluster_readiness_tokens",
            "Tokens that were generated only to find out whether the replica is ready.",
            ("model", "engine"),
            registry=registry,
        )
        self._engine = Gauge(
            "raycluster_engine_info",
            "1 for the engine that serves; reason: why it is not the one that comes first.",
            ("model", "engine", "reason"),
            registry=registry,
        )
        self._fallbacks = Counter(
            "raycluster_engine_fallbacks",
            "Starts of a replica in which another engine than the first took over.",
            ("model", "engine"),
            registry=registry,
        )
        self._start = Gauge(
            "raycluster_engine_start_seconds",
            "How long the phases of the engine's last start took.",
            ("model", "engine", "phase"),
            registry=registry,
        )

    def started(self, engine: str, reason: str, seconds: Mapping[str, float]) -> None:
        """Say which engine serves, why, and what its start took."""
        self._engine.labels(self._model, engine, reason).set(1)
        fallbacks = self._fallbacks.labels(self._model, engine)
        if reason:
            fallbacks.inc()
        for phase, took in seconds.items():
            self._start.labels(self._model, engine, phase).set(took)

    def first_token(self, engine: str, endpoint: str, seconds: float) -> None:
        """Count the beginning of a streamed answer."""
        self._first.labels(self._model, engine, endpoint).observe(seconds)

    def ended(self, engine: str, endpoint: str, status: int, seconds: float) -> None:
        """Count a request whose answer has ended."""
        self._requests.labels(self._model, engine, endpoint, str(status)).inc()
        self._duration.labels(self._model, engine, endpoint).observe(seconds)

    def asked(self, engine: str, tokens: int = 1) -> None:
        """Count tokens that nobody asked for but the replica itself, to know that it is ready."""
        self._readiness.labels(self._model, engine).inc(tokens)

    def tokens(self, engine: str, prompt: int, generated: int) -> None:
        """Count the tokens of one request."""
        self._tokens.labels(self._model, engine, "prompt").inc(prompt)
        self._tokens.labels(self._model, engine, "generation").inc(generated)


class Mirror:
    """Copies every sample of the registry to gauges that `make` returns (name, help, labels).

    Names and labels stay as they are, but ":" becomes "_": a histogram arrives as its _bucket,
    _sum and _count, a counter as its _total. Ray puts "ray_" before each.
    """

    def __init__(
        self,
        make: Callable[[str, str, tuple[str, ...]], Point],
        source: Callable[[], Iterable[Sample]] = lambda: samples(REGISTRY),
    ) -> None:
        self._make = make
        self._source = source
        self._points: dict[str, Point] = {}

    async def run(self) -> None:
        """Copy for ever, off the event loop."""
        await again_and_again(self.copy, PERIOD_S, "cannot report metrics to Ray")

    def copy(self) -> None:
        """Copy once."""
        for name, told, labels, value in self._source():
            if name not in self._points:
                self._points[name] = self._make(name, told, tuple(labels))
            self._points[name].set(value, {k: _plain(v) for k, v in labels.items()})


async def again_and_again(work: Callable[[], object], period: float, failed: str) -> None:
    """Call `work` in a thread every `period` seconds, for ever; `failed` is logged when it raises.

    Figures are no reason to stop serving, and one failure none to stop counting.
    """
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception:
            logger.exception("raycluster: %s", failed)
        await asyncio.sleep(period)


def samples(registry: CollectorRegistry, names: tuple[str, ...] = PREFIXES) -> Iterator[Sample]:
    """Yield the name, help, labels and value of what is ours or vLLM's; `names` are beginnings."""
    for metric in registry.collect():
        if not metric.name.startswith(names):
            continue
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                name = sample.name.replace(":", "_")
                yield name, metric.documentation, dict(sample.labels), sample.value


def own_text(registry: CollectorRegistry = REGISTRY) -> str:
    """Return what a replica counts itself beside its engine's server, as text."""
    names = [s.name for m in registry.collect() if m.name in EXPOSED for s in m.samples]
    return str(generate_latest(registry.restricted_registry(names)), "utf-8")


def _plain(text: str) -> str:
    """Return the text as Ray takes labels: it refuses what is not ASCII."""
    return text.encode("ascii", "replace").decode()


def ray_gauge(name: str, told: str, labels: tuple[str, ...]) -> Point:
    """Return a gauge that the exporter of this node shows."""
    from ray.util import metrics

    gauge: Any = metrics.Gauge(name, description=told, tag_keys=labels)
    return gauge  # type: ignore[no-any-return]
