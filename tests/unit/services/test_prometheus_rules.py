"""Each alert with figures that make it fire and with figures that do not, through promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycluster.services.prometheus import RULES, rules
from raycluster.spec import ClusterSpec
from raycluster.spec.services import Monitoring

PAGE = Path(__file__).parents[3] / "docs/operations/alerts.md"
SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h"}, "monitoring": {}}
)
MODEL = 'engine="vllm",endpoint="/v1/completions",model="m"'
HTTP = "ray_serve_num_http_requests_total"
FIRST = "ray_raycluster_time_to_first_token_seconds_bucket"
ENDS = "raycluster_gateway_certificate_expiry_timestamp_seconds"
ENGINE = "ray_raycluster_engine_info"
NODE = 'job="ray",node="a",role="worker"'


@dataclass(frozen=True)
class Case:
    """Series (name -> values, a minute apart), and the labels of the alert at a minute, or None."""

    alert: str
    series: dict[str, str]
    minute: float
    fires: dict[str, str] | None
    every: str = "1m"

    def test(self) -> dict[str, Any]:
        """Return it in promtool's form."""
        shown = {"alertname": self.alert, "alertstate": "firing", **(self.fires or {})}
        labels = ",".join(f"{k}={json.dumps(v)}" for k, v in sorted(shown.items()))
        expected = [{"labels": f"ALERTS{{{labels}}}", "value": 1}] if self.fires else []
        return {
            "name": f"{self.alert} {'fires' if self.fires else 'is quiet'}",
            "interval": self.every,
            "input_series": [{"series": s, "values": v} for s, v in self.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'ALERTS{{alertname="{self.alert}",alertstate="firing"}}',
                    "eval_time": f"{int(self.minute * 60)}s",
                    "exp_samples": expected,
                }
            ],
        }


def gone(minute: float, fires: bool) -> Case:
    labels = {"severity": "critical", "job": "ray", "node": "a", "role": "worker"}
    up = {f"up{{{NODE}}}": "1 1 0x20"}
    return Case("NodeGone", up, minute, labels if fires else None, every="10s")


def errors(bad: str, good: str, fires: bool) -> Case:
    series = {
        f'{HTTP}{{application="m",status_code="500",node="a"}}': bad,
        f'{HTTP}{{application="m",status_code="200",node="a"}}': good,
    }
    labels = {"severity": "critical", "application": "m"}
    return Case("ErrorRateHigh", series, 10, labels if fires else None)


def missing(up: str, fires: bool) -> Case:
    series = {
        'haproxy_backend_active_servers{proxy="http-m"}': up,
        'ray_serve_autoscaling_target_replicas{application="m",deployment="Model"}': "2x30",
        'ray_serve_autoscaling_target_replicas{application="removed"}': "2x30",
    }
    labels = {"severity": "warning", "application": "m"}
    return Case("ReplicasMissing", series, 20, labels if fires else None)


def restarts(starts: str, wanted: str, fires: bool) -> Case:
    first, *more = starts.split("|")
    series = {
        f'ray_serve_deployment_replica_starts_total{{application="m",replica="{number}"}}': values
        for number, values in enumerate([first, *more])
    }
    series['ray_serve_autoscaling_target_replicas{application="m"}'] = wanted
    labels = {"severity": "critical", "application": "m"}
    return Case("ReplicaRestarts", series, 16, labels if fires else None)


def queue(values: str, fires: bool) -> Case:
    series = {'ray_vllm_num_requests_waiting{model_name="m",WorkerId="1"}': values}
    labels = {"severity": "warning", "model": "m"}
    return Case("QueueGrowing", series, 20, labels if fires else None)


def first_token(below_ten: str, fires: bool) -> Case:
    series = {
        f'{FIRST}{{{MODEL},le="10.0"}}': below_ten,
        f'{FIRST}{{{MODEL},le="20.0"}}': "0+100x30",
        f'{FIRST}{{{MODEL},le="+Inf"}}': "0+100x30",
    }
    labels = {"severity": "warning", "model": "m"}
    return Case("FirstTokenSlow", series, 20, labels if fires else None)


def idle(utilization: str, running: str, fires: bool) -> Case:
    series = {
        'ray_node_gpus_utilization{node="a",GpuIndex="0"}': utilization,
        'ray_node_gpus_utilization{node="a",GpuIndex="1"}': "0x30",
        'ray_vllm_num_requests_running{node="a",model_name="m"}': running,
    }
    labels = {"severity": "warning", "node": "a"}
    return Case("GpuIdleUnderLoad", series, 20, labels if fires else None)


def gpu_memory(used: str, fires: bool) -> Case:
    series = {
        'ray_node_gram_used{node="a",GpuIndex="1"}': used,
        'ray_node_gram_available{node="a",GpuIndex="1"}': "100x30",
    }
    labels = {"severity": "warning", "node": "a", "GpuIndex": "1"}
    return Case("GpuMemoryFull", series, 20, labels if fires else None)


def disk(percent: str, fires: bool) -> Case:
    series = {f"ray_node_disk_utilization_percentage{{{NODE}}}": percent}
    labels = {"severity": "warning", "node": "a"}
    return Case("DiskFilling", series, 20, labels if fires else None)


def certificate(days: int, fires: bool) -> Case:
    gate = {"job": "gateway", "node": "a"}
    series = {f'{ENDS}{{job="gateway",node="a"}}': f"{days * 86400}x10"}
    return Case("CertificateEnds", series, 5, {"severity": "warning", **gate} if fires else None)


def fallback(reason: str, fires: bool) -> Case:
    told = {"model": "m", "engine": "transformers", "reason": reason}
    labels = ",".join(f'{k}="{v}"' for k, v in told.items())
    series = {f'{ENGINE}{{{labels},WorkerId="{n}"}}': "1x10" for n in range(2)}
    return Case("FallbackEngine", series, 5, {"severity": "warning", **told} if fires else None)


def target(job: str, fires: bool) -> Case:
    labels = {"job": job, "instance": "127.0.0.1:9101"}
    series = {f'up{{job="{job}",instance="127.0.0.1:9101"}}': "0x10"}
    return Case("TargetDown", series, 5, {"severity": "warning", **labels} if fires else None)


def gateway(up: str, fires: bool) -> Case:
    labels = {"severity": "critical", "job": "gateway", "node": "a"}
    series = {'up{job="gateway",node="a"}': up}
    return Case("GatewayDown", series, 5, labels if fires else None)


def undelivered(count: str, fires: bool) -> Case:
    place = "http://10.0.0.9:9093/api/v2/alerts"
    series = {f'prometheus_notifications_errors_total{{alertmanager="{place}"}}': count}
    labels = {"severity": "warning", "alertmanager": place}
    return Case("AlertsUndelivered", series, 20, labels if fires else None)


CASES = (
    *(gone(0.5, fires=False), gone(1, fires=True)),
    *(errors("0+10x20", "0+90x20", fires=True), errors("0+1x20", "0+99x20", fires=False)),
    errors("0x5 1x20", "0+1x20", fires=False),  # one error of six answers
    *(missing("1x30", fires=True), missing("2x30", fires=False)),
    missing("1x15 2x30", fires=False),
    # One replica, and five more that took its place; then a rollout of three.
    restarts("1x20|_x2 1x18|_x4 1x16|_x6 1x14|_x9 1x11|_x12 1x8", "1x20", fires=True),
    restarts("1x20|1x20|1x20|_x3 1x17|_x6 1x14|_x9 1x11", "3x20", fires=False),
    *(queue("0+5x30", fires=True), queue("50x30", fires=False), queue("0x30", fires=False)),
    *(first_token("0+90x30", fires=True), first_token("0+96x30", fires=False)),
    *(idle("0x30", "4x30", fires=True), idle("60x30", "4x30", fires=False)),
    *(idle("0x30", "0x30", fires=False), idle("0x30", "4 0 4 0x30", fires=False)),
    *(gpu_memory("9900x30", fires=True), gpu_memory("4000x30", fires=False)),
    *(disk("91x30", fires=True), disk("89x30", fires=False), disk("91x15 40x30", fires=False)),
    *(certificate(13, fires=True), certificate(15, fires=False)),
    *(fallback("no AVX-512", fires=True), fallback("", fires=False)),
    *(target("ingress", fires=True), target("ray", fires=False), target("gateway", fires=False)),
    *(gateway("0x10", fires=True), gateway("1 0 1x10", fires=False)),
    *(undelivered("0+1x30", fires=True), undelivered("3x30", fires=False)),
)


@dataclass(frozen=True)
class Alert:
    """An alert as its file has it."""

    name: str
    severity: str
    annotations: dict[str, str] = field(default_factory=dict)


def alerts() -> list[Alert]:
    groups = yaml.safe_load(rules("alerts.yml", SPEC))["groups"]
    return [
        Alert(rule["alert"], rule["labels"]["severity"], rule["annotations"])
        for group in groups
        for rule in group["rules"]
    ]


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if not program:
        pytest.skip("needs promtool")
    return subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the rules."""
    for name in RULES:
        (tmp_path / name).write_bytes(rules(name, SPEC))
    return tmp_path


def test_promtool_accepts_the_rules(folder: Path) -> None:
    done = promtool("check", "rules", *RULES, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_not_otherwise(folder: Path) -> None:
    tests = {
        "rule_files": list(RULES),
        "evaluation_interval": "30s",
        "tests": [case.test() for case in CASES],
    }
    (folder / "tests.yml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", "tests.yml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_both_ways() -> None:
    for fires in (True, False):
        assert {c.alert for c in CASES if bool(c.fires) == fires} == {a.name for a in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: Alert) -> None:
    assert alert.severity in ("critical", "warning")
    assert set(alert.annotations) == {"summary", "description"}
    assert "`" in alert.annotations["description"]  # something to run or to set
    fired = next(c.fires for c in CASES if c.alert == alert.name and c.fires)
    named = re.findall(r"\$labels\.(\w+)", " ".join(alert.annotations.values()))
    assert set(named) <= set(fired)


def test_the_page_of_alerts_has_each_of_them() -> None:
    titles = re.findall(r"(?m)^## (\w+)$", PAGE.read_text())
    assert titles == [alert.name for alert in alerts()]


def test_the_limit_of_the_first_token_is_the_spec_s() -> None:
    spec = SPEC.model_copy(update={"monitoring": Monitoring(time_to_first_token=2.5)})
    assert b"p95_5m > 2.5\n" in rules("alerts.yml", spec)
