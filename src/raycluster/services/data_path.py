"""The way of a request from Serve's HTTP port to an engine, as variables of Ray's processes.

HAProxy on the head passes requests to the replicas' own ports: no Python between client and
replica. What is set here counts when Ray starts, on every node.
"""

from __future__ import annotations

from collections.abc import Mapping

from raycluster.core.interfaces import ROOT
from raycluster.serve.settings import OFFSET
from raycluster.spec.models import Ports

HAPROXY_FILE = "code/haproxy"
HAPROXY = """\
#!/usr/bin/env python3
from raycluster.serve.haproxy import main

main()
"""
"""What Serve runs as HAProxy, and where: it adds to Serve's configuration."""

# Serve's controller hands the head's values to every node: so they are relative, to the folder in
# which a node's processes work, its own. A node's id follows.
_FOLDER = "h"

HAPROXY_TOLD = "haproxy.json"
"""What it adds is made from: the routes of models, and how each is balanced."""

_FIXED: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The engine's application runs on the replica's own event loop, and logs are written in blocks.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    # A replica that cannot be connected to, or that ends before it answers, is left for another;
    # never after the first byte of an answer. What is sent again has to fit into the buffer.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(1 << 16),
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # Each change of replicas starts a new HAProxy; the old one finishes its streams until then.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "600",
    # A busy machine takes longer than Serve's 5 s to start HAProxy's keeper.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # One that passes no check any more, for it hangs, is killed instead of asked to finish.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # HAProxy learns within a second or two that a replica is going.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Ray makes its workers nice (15), and with them the engines and HAProxy.
    "RAY_worker_niceness": "0",
    # Without memory the kernel ends the largest replica or engine (serve/first_to_go.py), and none
    # of Serve's own processes. Ray's guard would end Serve's controller first, by either policy.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_oom_score_adjustment": "0",
    "RAYCLUSTER_HAPROXY": f"{ROOT}/{HAPROXY_TOLD}",
    "RAY_SERVE_HAPROXY_BINARY_PATH": f"{ROOT}/{HAPROXY_FILE}",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{_FOLDER}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{_FOLDER}/admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{_FOLDER}/metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": _FOLDER,
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{_FOLDER}/server-state",
}


def data_path(ports: Ports) -> dict[str, str]:
    """Return the variables; `ports` are the spec's."""
    own, engines, grpc = ports.replica_parts
    return {
        **_FIXED,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(own[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(own[-1]),
        OFFSET: str(engines[0] - own[0]),
        "RAYCLUSTER_GRPC_PORTS": f"{grpc[0]}-{grpc[-1]}",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.ingress_fallback),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.ingress_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.ingress_stats),
    }
