"""Prometheus: what Ray, Serve and the engines say of themselves on every node."""

from __future__ import annotations

import json

from raycluster import templates
from raycluster.contracts import ROOT, Process
from raycluster.services.ray_node import HEAD
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.types import in_bytes

PROMETHEUS = "prometheus"
TARGETS_FILE = "nodes.json"
HEAD_PORTS = {"autoscaler": 44217, "dashboard": 44227}
"""Where Ray's autoscaler and dashboard tell their metrics on the head; Ray's defaults."""

_RUN = """\
command -v prometheus >/dev/null || { echo "prometheus is not installed here" >&2; exit 127; }
cd "$0" && exec prometheus "$@"
"""


def prometheus(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that records metrics; nodes that come and go do not restart it."""
    if spec.monitoring is None or not spec.monitoring.prometheus or host.role != HEAD:
        return None
    files = {f"{PROMETHEUS}/prometheus.yml": prometheus_yml(spec)}
    return Process(
        role=PROMETHEUS,
        argv=(
            *("sh", "-c", _RUN, f"{ROOT}/{PROMETHEUS}"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--storage.tsdb.retention.time={spec.monitoring.retention}",
            f"--storage.tsdb.retention.size={in_bytes(spec.monitoring.retention_size)}B",
            f"--web.listen-address=127.0.0.1:{spec.ports.prometheus}",
        ),
        env={"RAYCLUSTER_ROOT": ROOT},
        ports={"prometheus": spec.ports.prometheus},
        image=spec.monitoring.image,
        files=files,
        files_id=wiring.seal(files),
        live_files={f"{PROMETHEUS}/{TARGETS_FILE}": targets(spec, wiring)},
    )


def prometheus_yml(spec: ClusterSpec) -> bytes:
    """Return Prometheus's configuration."""
    return templates.render(
        "prometheus/prometheus.yml",
        cluster=spec.cluster.name,
        targets_file=TARGETS_FILE,
        head_targets=[f"127.0.0.1:{port}" for port in HEAD_PORTS.values()],
        ingress_targets=[f"127.0.0.1:{spec.ports.ingress_metrics}"],
        own_targets=[f"127.0.0.1:{spec.ports.prometheus}"],
    )


def targets(spec: ClusterSpec, wiring: Wiring) -> bytes:
    """Return the nodes to ask, in the form of Prometheus's `file_sd_configs`."""
    found = [
        {
            "targets": [f"{_shown(wiring.addresses[host.name])}:{spec.ports.metrics}"],
            "labels": {"node": host.name, "role": host.role},
        }
        for host in spec.hosts
    ]
    return json.dumps(found).encode()


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address
