"""The app's files on the way to the nodes, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.applications import push
from raycluster.apply.context import ApplyContext
from raycluster.apply.smoke_test import Fallback, fallbacks
from raycluster.core.errors import UnreachableError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.cluster import observe
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets


def gone(host: ResolvedHost, ask: connect.Ask | None) -> LocalTransport:
    """Reach nothing."""
    raise UnreachableError("did not answer", where=host.name)


def test_a_host_that_is_away_keeps_the_app_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connect, "TRANSPORTS", {**connect.TRANSPORTS, "ssh": gone})
    document: dict[str, Any] = {
        "cluster": {"name": "c"},
        "runtime": {"kind": "native", "python": sys.executable, "start_on_boot": False},
        "head": {"transport": "local"},
        "workers": [{"host": "127.0.0.2", "name": "away"}],
        "models": [{"name": "m"}],
    }
    spec = ClusterSpec(**document)
    events: list[Event] = []
    with Fleet("c", 2) as fleet:
        runtime = fleet.open(spec.hosts[0]).runtime
        try:
            head = Process("head", ("sleep", "1000"))
            runtime.start(head, Versions(), {}, lambda _: None)
            work = ApplyContext(spec, fleet, Secret("t"), Secrets(), events.append)
            push(work, observe(spec, fleet), {"code/app.py": b"1"})
            assert (tmp_path / ".raycluster/c/code/app.py").read_bytes() == b"1"
        finally:
            runtime.remove()
    assert events == [Event("away", "cannot deploy to it: did not answer", "note")]


VLLM = {"model": "m", "engine": "vllm", "reason": ""}
FELL = {"model": "m", "engine": "transformers", "reason": "vLLM died"}


@pytest.mark.parametrize(
    ("reports", "found"),
    [
        ([], {}),
        ([VLLM, VLLM], {}),
        ([VLLM, FELL], {"m": Fallback("transformers", "1 of 2 replicas: vLLM died")}),
        ([FELL, FELL], {"m": Fallback("transformers", "vLLM died")}),
        ([FELL | {"model": "asked"}, VLLM], {}),
        (
            [{"model": "m", "engine": "transformers"}],
            {"m": Fallback("transformers", "the replica gives no reason")},
        ),
    ],
)
def test_one_replica_on_another_engine_is_enough(
    reports: list[dict[str, str]], found: dict[str, Fallback]
) -> None:
    assert fallbacks(reports, {"m"}) == found
