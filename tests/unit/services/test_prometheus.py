"""Prometheus's configuration, and what makes it start again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raycluster.contracts import Process, Secret
from raycluster.services.prometheus import prometheus, prometheus_yml
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec

ADDRESSES = {"head": "10.0.0.1", "a": "fd00::2"}


def spec_of(*workers: str, **monitoring: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h0"},
            "workers": [{"host": w, "name": w} for w in workers],
            "monitoring": monitoring,
        }
    )


def process(spec: ClusterSpec) -> Process:
    made = prometheus(spec, spec.hosts[0], Wiring(ADDRESSES, Secret("t")))
    assert made
    return made


def test_promtool_accepts_it(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool")
    (tmp_path / "prometheus.yml").write_bytes(prometheus_yml(spec_of()))
    (tmp_path / "nodes.json").write_bytes(process(spec_of("a")).live_files["prometheus/nodes.json"])
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_node_is_a_target() -> None:
    [file] = process(spec_of("a")).live_files.values()
    assert json.loads(file) == [
        {"targets": ["10.0.0.1:6385"], "labels": {"node": "head", "role": "head"}},
        {"targets": ["[fd00::2]:6385"], "labels": {"node": "a", "role": "worker"}},
    ]


def test_a_node_that_comes_does_not_restart_it_and_another_retention_does() -> None:
    before = process(spec_of())
    assert process(spec_of("a")).fingerprint == before.fingerprint
    assert process(spec_of(retention="3d")).fingerprint != before.fingerprint


def test_it_listens_on_loopback_with_what_was_asked_for() -> None:
    argv = process(spec_of(retention="3d", retention_size="2g")).argv
    assert argv[-3:] == (
        "--storage.tsdb.retention.time=3d",
        "--storage.tsdb.retention.size=2147483648B",
        "--web.listen-address=127.0.0.1:9090",
    )


@pytest.mark.parametrize("monitoring", [None, {"prometheus": False}])
def test_without_being_asked_for_there_is_none(monitoring: dict[str, Any] | None) -> None:
    table = {"monitoring": monitoring} if monitoring else {}
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}, **table})
    assert prometheus(spec, spec.hosts[0], Wiring(ADDRESSES, Secret("t"))) is None
