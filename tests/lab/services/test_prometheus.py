"""Prometheus beside a cluster that serves: its targets, and each rule with real figures."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.lab.host import wait_for
from tests.lab.services.cluster import NAME, Watched, written

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

FOLLOW_S = 30.0
"""Within so many seconds after `up` Prometheus has to know of nodes that came or went."""

NEEDS_GPU = {
    *("node:gpu_utilization:max", "gpu:memory_used:ratio"),
    *("ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"),
}
NO_SERIES = {
    **dict.fromkeys(NEEDS_GPU, "the hosts of the lab have no GPU"),
    "ray_raycluster_tokens_total": "only the transformers engine counts tokens itself",
    "prometheus_notifications_errors_total": "the spec names no Alertmanager",
}
BOTH = {"head", "docker-2"}
METRIC = re.compile(r"\b(?:[a-z]+:\w+:\w+|(?:ray|haproxy|prometheus|raycluster)_\w+|up)\b(?!\()")


def rules(watched: Watched, kind: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, expression and health of the rules of a kind as Prometheus has loaded them."""
    for group in watched.ask("rules", type=kind)["groups"]:
        for rule in group["rules"]:
            yield rule["name"], rule["query"], rule["health"]


def test_all_targets_are_up(watched: Watched) -> None:
    both = {"head": "up", "docker-2": "up"}
    wanted = {"ray": "2", "ray-head": "2", "gateway": "2", "ingress": "1", "prometheus": "1"}

    def up() -> dict[str, str]:
        found = watched.query("count by (job) (up == 1)")
        return {s["metric"]["job"]: s["value"][1] for s in found}

    for job in ("ray", "gateway"):  # one that did not answer in time is asked again
        wait_for(lambda of=job: watched.targets(of) == both, f"{job} of both", 60)  # type: ignore[misc]
    wait_for(lambda: up() == wanted, f"{wanted} and nothing else", 60)


def test_nodes_tell_of_cpu_memory_disk_and_network(watched: Watched) -> None:
    for name in ("cpu_utilization", "mem_used", "disk_free", "network_receive_speed"):
        series = f"ray_node_{name}"
        wait_for(lambda of=series: watched.nodes(of) == BOTH, series, 60)  # type: ignore[misc]


def test_gateways_tell_of_connections_and_of_their_certificate(watched: Watched) -> None:
    ends = "raycluster_gateway_certificate_expiry_timestamp_seconds"
    for name in ("nginx_connections_active", ends):
        series = f"{name} > 0"
        wait_for(lambda of=series: watched.nodes(of) == BOTH, series, 60)  # type: ignore[misc]


def test_every_recording_rule_has_a_series(watched: Watched) -> None:
    names = {name for name, _, _ in rules(watched, "record")}
    assert len(names) > 10

    def lacking() -> set[str]:
        return {name for name in names if not watched.query(name)}

    wait_for(lambda: lacking() == names & NO_SERIES.keys(), "the rules to be evaluated", 60)


def test_every_alert_is_evaluated_over_figures_that_are_there(watched: Watched) -> None:
    seen = list(rules(watched, "alert"))
    assert len(seen) > 10
    asked: set[str] = set()
    for name, expression, health in [*seen, *rules(watched, "record")]:
        assert health == "ok", name
        watched.query(expression)  # which fails for one that Prometheus cannot evaluate
        metrics = METRIC.findall(expression)
        assert metrics, expression
        asked |= {*metrics}

    def lacking() -> set[str]:
        return {metric for metric in asked if not watched.query(metric)}

    wait_for(lambda: lacking() == NO_SERIES.keys(), "all figures but those", 60)


def test_a_cluster_that_serves_raises_no_alert(watched: Watched) -> None:
    alerts = watched.ask("alerts")["alerts"]
    firing = {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}
    assert firing <= {"DiskFilling"}  # which is this machine's own


@pytest.mark.long
def test_a_lost_worker_raises_an_alert_and_targets_follow_the_spec(watched: Watched) -> None:
    host = watched.hosts[1]
    host.check("docker", "kill", f"raycluster-{NAME}-worker")
    began = time.monotonic()
    wait_for(lambda: watched.firing("NodeGone"), "the alert", 120)
    fired = time.monotonic() - began

    [alert] = [a for a in watched.ask("alerts")["alerts"] if a["labels"]["alertname"] == "NodeGone"]
    assert alert["annotations"]["summary"].startswith("docker-2: ")

    watched.spec.write_text(written(watched.lab, watched.hosts[:1]))
    watched.up()
    began = time.monotonic()
    wait_for(lambda: set(watched.targets("ray")) == {"head"}, "the target to go", FOLLOW_S)
    gone = time.monotonic() - began
    assert set(watched.targets("gateway")) == {"head"}
    wait_for(lambda: not watched.firing("NodeGone"), "the alert to end", 60)
    resolved = time.monotonic() - began

    watched.spec.write_text(written(watched.lab, watched.hosts))
    assert ("start", "worker") in watched.up()
    began = time.monotonic()
    both = {"head": "up", "docker-2": "up"}
    wait_for(lambda: watched.targets("ray") == both, "the new target", FOLLOW_S)
    came = time.monotonic() - began
    print(
        f"NodeGone fired after {fired:.1f} s; once `up` had ended, the target was gone after "
        f"{gone:.1f} s and the alert after {resolved:.1f} s; a new target was up after {came:.1f} s"
    )
    assert watched.up() == []
