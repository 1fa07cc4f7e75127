from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from raycluster.serve.engines.inside.usage import Usage
from raycluster.serve.metrics import Metrics, Mirror, again_and_again, samples

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


class Series:
    """What a gauge of Ray does, kept in memory: the labels' values -> the last value."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.values[tuple(tags[label] for label in self.labels)] = value


class Exporter:
    def __init__(self) -> None:
        self.found: dict[str, Series] = {}

    def make(self, name: str, told: str, labels: tuple[str, ...]) -> Series:
        assert told
        assert name not in self.found
        return self.found.setdefault(name, Series(labels))


def test_documented_names_are_those_in_the_registry() -> None:
    registry = CollectorRegistry()
    Metrics("m", registry)
    Usage(registry)
    made = set()
    for metric in registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        made.add((f"ray_{name}", metric.type))
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    assert set(rows) == made


def test_the_mirror_copies_ours_and_vllm_s_under_their_names() -> None:
    registry = CollectorRegistry()
    metrics, exporter = Metrics("modèle", registry), Exporter()
    Counter("vllm:generation_tokens", "Tokens.", ("model_name",), registry=registry).labels(
        "m"
    ).inc(7)
    Counter("python_gc", "Not ours.", registry=registry).inc()
    mirror = Mirror(exporter.make, lambda: samples(registry))
    metrics.ended("vllm", "/v1/completions", 200, 0.2)
    mirror.copy()
    metrics.ended("vllm", "/v1/completions", 200, 0.2)
    mirror.copy()
    found = exporter.found
    assert found["vllm_generation_tokens_total"].values == {("m",): 7}
    requests = found["raycluster_requests_total"].values
    assert requests == {("mod?le", "vllm", "/v1/completions", "200"): 2}
    buckets = found["raycluster_request_duration_seconds_bucket"]
    assert buckets.labels[-1] == "le"
    assert buckets.values["mod?le", "vllm", "/v1/completions", "0.3"] == 2
    assert buckets.values["mod?le", "vllm", "/v1/completions", "0.1"] == 0
    assert not any(name.startswith("python") or "created" in name for name in found)


def test_only_a_reason_makes_a_fallback() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("m", registry)

    def fallbacks() -> dict[str, float]:
        return {
            labels["engine"]: value
            for name, _, labels, value in samples(registry)
            if name == "raycluster_engine_fallbacks_total"
        }

    metrics.started("vllm", "", {"import": 1.0, "total": 2.0})
    assert fallbacks() == {"vllm": 0}
    metrics.started("transformers", "no room", {})
    assert fallbacks() == {"vllm": 0, "transformers": 1}


def test_work_that_fails_once_is_done_again(caplog: pytest.LogCaptureFixture) -> None:
    done = []

    def work() -> None:
        done.append(1)
        if len(done) == 1:
            raise ValueError("a collector that fails")
        raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(again_and_again(work, 0.0, "cannot record metrics"))
    assert len(done) == 2
    assert "raycluster: cannot record metrics" in caplog.text
