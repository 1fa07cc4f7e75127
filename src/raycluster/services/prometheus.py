"""Prometheus: what Ray, Serve and the engines say of themselves on every node."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_address

from raycluster.core import templates
from raycluster.core.interfaces import ROOT, Process
from raycluster.services.gateway import FIGURES_PATH, has_gateway
from raycluster.services.ray_node import HEAD
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.services import LOOPBACK
from raycluster.spec.types import bracketed, in_bytes

PROMETHEUS = "prometheus"
NODES_FILE, GATEWAYS_FILE, GPUS_FILE = "nodes.json", "gateways.json", "gpus.json"
RULES = ("recording.yml", "alerts.yml")
HEAD_PORTS = {"autoscaler": 44217, "dashboard": 44227}
"""Where Ray's autoscaler and dashboard tell their metrics on the head; Ray's defaults."""

_RUN = """\
command -v prometheus >/dev/null || { echo "prometheus is not installed" >&2; exit 127; }
cd "$0" && exec prometheus "$@"
"""


def has_prometheus(spec: ClusterSpec, host: ResolvedHost) -> bool:
    """Tell whether Prometheus should run on the host."""
    return spec.monitoring is not None and spec.monitoring.prometheus and host.role == HEAD


def prometheus(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that records metrics; nodes that come and go do not restart it."""
    if spec.monitoring is None or not has_prometheus(spec, host):
        return None
    files = {
        f"{PROMETHEUS}/prometheus.yml": prometheus_yml(spec),
        **{f"{PROMETHEUS}/{name}": rules(name, spec) for name in RULES},
    }
    found = {
        NODES_FILE: nodes(spec, wiring),
        GATEWAYS_FILE: gateways(spec, wiring),
        GPUS_FILE: gpu_exporters(spec, wiring),
    }
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
        live_files={f"{PROMETHEUS}/{n}": json.dumps(t).encode() for n, t in found.items()},
        program="prometheus",
    )


def prometheus_yml(spec: ClusterSpec) -> bytes:
    """Return Prometheus's configuration. Raises ValueError for a spec without `[monitoring]`."""
    if spec.monitoring is None:
        raise ValueError("the spec has no monitoring")
    return templates.render(
        "prometheus/prometheus.yml",
        cluster=spec.cluster.name,
        rules=RULES,
        alertmanagers=spec.monitoring.alertmanagers,
        nodes_file=NODES_FILE,
        gateways_file=GATEWAYS_FILE if spec.gateway else "",
        gateway_scheme=spec.gateway.scheme if spec.gateway else "",
        gateway_path=FIGURES_PATH,
        gpus_file=GPUS_FILE if spec.monitoring.gpu_exporter_port else "",
        head_targets=[f"{LOOPBACK}:{port}" for port in HEAD_PORTS.values()],
        ingress_targets=[f"{LOOPBACK}:{spec.ports.ingress_metrics}"] if spec.models else [],
        own_targets=[f"{LOOPBACK}:{spec.ports.prometheus}"],
    )


def rules(name: str, spec: ClusterSpec) -> bytes:
    """Return a file of RULES. Raises ValueError for a spec without `[monitoring]`."""
    if spec.monitoring is None:
        raise ValueError("the spec has no monitoring")
    first = spec.monitoring.time_to_first_token
    return templates.render(f"prometheus/{name}", first_token_seconds=first)


Targets = list[dict[str, object]]
"""What Prometheus's `file_sd_configs` reads, before it is JSON."""


def nodes(spec: ClusterSpec, wiring: Wiring) -> Targets:
    """Return every node of Ray."""
    head, *others = spec.hosts
    own = _place(head, wiring)
    # Ray tells its metrics to IPv4 alone, and a relay is there on the nodes of several.
    first = _target(head, LOOPBACK if ":" in own else own, spec.ports.metrics)
    return [first, *_targets(others, spec.ports.metrics, wiring)]


def gpu_exporters(spec: ClusterSpec, wiring: Wiring) -> Targets:
    """Return the hosts that may have GPUs, where the spec tells of exporters there."""
    port = spec.monitoring.gpu_exporter_port if spec.monitoring else None
    return _targets((h for h in spec.hosts if h.gpus != 0), port, wiring) if port else []


def gateways(spec: ClusterSpec, wiring: Wiring) -> Targets:
    """Return the gateways that the head reaches: those on another host's loopback are not."""
    gate, head = spec.gateway, spec.head_host
    if gate is None:
        return []
    listens = ip_address(gate.address)
    found = []
    for host in (h for h in spec.hosts if has_gateway(spec, h)):
        place = _place(host, wiring)
        if host == head:
            place = gate.near
        elif listens.is_loopback:
            continue
        found.append(_target(host, place, spec.ports.gateway))
    return found


def _targets(hosts: Iterable[ResolvedHost], port: int, wiring: Wiring) -> Targets:
    return [_target(host, _place(host, wiring), port) for host in hosts]


def _place(host: ResolvedHost, wiring: Wiring) -> str:
    """Return the node's address, or what the spec says of it where this run did not reach it."""
    return wiring.addresses.get(host.name) or host.private_address or host.host


def _target(host: ResolvedHost, place: str, port: int) -> dict[str, object]:
    return {
        "targets": [f"{bracketed(place)}:{port}"],
        "labels": {"node": host.name, "role": host.role},
    }
