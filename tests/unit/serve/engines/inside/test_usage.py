from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from raycluster.serve.engines.inside import usage as module
from raycluster.serve.engines.inside.guard import Guard
from raycluster.serve.engines.inside.usage import OTHERS, usage
from tests.unit.serve.engines.inside.test_guard import Engine, ask, owned


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_owners_are_counted_apart_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OWNERS", 2)
    figures = usage()
    monkeypatch.setattr(figures, "_owners", set())
    for owner in ("x", "y", "z", "x", "w"):
        figures.took("counted", owner, 3, 1, 2)
    named = "raycluster_usage_tokens_total"
    found = {
        owner: value(named, model="counted", owner=owner, kind="prompt")
        for owner in ("x", "y", "z", "w", OTHERS)
    }
    assert found == {"x": 6, "y": 3, "z": 0, "w": 0, OTHERS: 6}


def test_requests_are_counted_by_owner() -> None:
    before = value("raycluster_usage_requests_total", model="m", owner="alice")
    guard = Guard(Engine(), "m")
    for headers, method in ((owned(), "POST"), (owned(models="b"), "POST"), (owned(), "GET")):
        ask(guard, "/v1/x", headers, method)
    assert value("raycluster_usage_requests_total", model="m", owner="alice") == before + 1
