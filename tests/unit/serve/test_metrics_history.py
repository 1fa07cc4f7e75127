from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from raycluster.observe.engine_metrics import read_service
from raycluster.serve.metrics import Metrics
from raycluster.serve.metrics_history import PERIOD_S, SPAN_S, MetricsHistory


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def replica() -> tuple[CollectorRegistry, Metrics]:
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    metrics = Metrics("m", registry)
    metrics.started("vllm", "", {})
    return registry, metrics


def test_the_oldest_is_as_old_as_the_span_and_a_period_at_most() -> None:
    registry, metrics = replica()
    clock = Clock()
    kept = MetricsHistory(registry, clock)
    assert kept.earliest() is None
    ages = []
    for number in range(20):
        kept.keep()
        metrics.ended("vllm", "/v1/completions", 200, 0.1)
        clock.now += PERIOD_S
        earliest = kept.earliest()
        assert earliest
        service = read_service(earliest[1].decode(), "m")
        assert service
        ages.append(earliest[0])
        assert service.requests == number + 1 - earliest[0] / PERIOD_S  # as it was then
    assert ages[:3] == [PERIOD_S, 2 * PERIOD_S, 3 * PERIOD_S]
    assert set(ages[10:]) == {SPAN_S + PERIOD_S}


def test_it_keeps_what_status_reads_and_not_the_rest() -> None:
    registry, metrics = replica()
    Counter("vllm:generation_tokens", "Tokens.", ("model_name",), registry=registry).labels(
        "m"
    ).inc(7)
    Histogram("vllm:e2e_request_latency_seconds", "Long.", registry=registry).observe(1)
    metrics.first_token("vllm", "/v1/completions", 0.05)
    kept = MetricsHistory(registry)
    kept.keep()
    earliest = kept.earliest()
    assert earliest
    text = earliest[1].decode()
    service = read_service(text, "m")
    assert service
    assert (service.tokens, max(service.first_token.values())) == (7.0, 1.0)
    assert service.engine.started > 0
    assert "e2e_request_latency" not in text
    assert "request_duration" not in text
