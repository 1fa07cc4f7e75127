"""Prometheus's configuration, and what makes it start again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raycluster.core.interfaces import Process, Secret
from raycluster.services.prometheus import prometheus
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


EVERYTHING: dict[str, Any] = {
    "alertmanagers": ["10.0.0.9:9093", "[fd00::9]:9093"],
    "gpu_exporter_port": 9400,
    "time_to_first_token": 0.5,
}


def with_gateway(spec: ClusterSpec, **gate: Any) -> ClusterSpec:
    table = {**spec.model_dump(exclude_unset=True), "gateway": gate}
    return ClusterSpec.model_validate(table)


@pytest.mark.parametrize(
    "spec",
    [spec_of(), with_gateway(spec_of("a", **EVERYTHING), tls={"self_signed": True}, on="all")],
)
def test_promtool_accepts_it(spec: ClusterSpec, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool")
    made = process(spec)
    for path, content in {**made.files, **made.live_files}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus/prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def found(spec: ClusterSpec, name: str) -> Any:
    return json.loads(process(spec).live_files[f"prometheus/{name}.json"])


def test_every_node_is_a_target() -> None:
    assert found(spec_of("a"), "nodes") == [
        {"targets": ["10.0.0.1:6385"], "labels": {"node": "head", "role": "head"}},
        {"targets": ["[fd00::2]:6385"], "labels": {"node": "a", "role": "worker"}},
    ]


def test_the_head_is_asked_where_ray_tells_its_metrics() -> None:
    spec = spec_of()
    made = prometheus(spec, spec.hosts[0], Wiring({"head": "fd00::1"}, Secret("t")))
    assert made
    [node] = json.loads(made.live_files["prometheus/nodes.json"])
    assert node["targets"] == ["127.0.0.1:6385"]


def test_a_node_that_was_not_reached_stays_a_target_where_the_spec_has_it() -> None:
    assert found(spec_of("b"), "nodes")[1]["targets"] == ["b:6385"]


@pytest.mark.parametrize(
    ("gate", "targets"),
    [
        ({"on": "all", "api_keys": {"a": "env:A"}}, ["127.0.0.1:8080", "[fd00::2]:8080"]),
        ({"on": "all", "listen": "::"}, ["[::1]:8080", "[fd00::2]:8080"]),
        ({"on": "all"}, ["127.0.0.1:8080"]),  # on loopback: the head reaches no other
        ({"listen": "10.0.0.1"}, ["10.0.0.1:8080"]),
    ],
)
def test_gateways_that_the_head_reaches_are_targets(
    gate: dict[str, Any], targets: list[str]
) -> None:
    gateways = found(with_gateway(spec_of("a"), **gate), "gateways")
    assert [place for group in gateways for place in group["targets"]] == targets


def test_exporters_for_gpus_are_asked_where_there_may_be_gpus() -> None:
    assert found(spec_of("a"), "gpus") == []
    spec = spec_of(gpu_exporter_port=9400)
    workers = [{"host": "a", "name": "a"}, {"host": "c", "name": "c", "gpus": 0}]
    table = {**spec.model_dump(exclude_unset=True), "workers": workers}
    hosts = [group["labels"]["node"] for group in found(ClusterSpec.model_validate(table), "gpus")]
    assert hosts == ["head", "a"]


def test_a_node_that_comes_does_not_restart_it_and_another_retention_does() -> None:
    before = process(spec_of())
    assert process(spec_of("a")).fingerprint == before.fingerprint
    assert process(spec_of(retention="3d")).fingerprint != before.fingerprint
    assert process(spec_of(time_to_first_token=1)).fingerprint != before.fingerprint


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


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("10.0.0.9", "`host:port`"),
        ("alertmanager:0", "`host:port`"),
        ("http://alertmanager:9093", "`host:port` alone"),
        ("fd00::9:9093", "brackets"),
        ("--web:9093", "must not begin"),
        ("a b:9093", "host name"),
    ],
)
def test_an_alertmanager_that_cannot_be_is_refused(place: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(alertmanagers=[place])
