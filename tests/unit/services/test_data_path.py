from __future__ import annotations

from raycluster.services.data_path import data_path
from raycluster.spec.models import Ports

NODE_ID = "f" * 56
RELOADING = ".4194304.tmp"
"""What HAProxy adds to its socket's path while it takes over from the one before."""


def test_every_port_of_the_data_path_is_the_spec_s() -> None:
    told = data_path(
        Ports(ingress_stats=1, ingress_metrics=2, ingress_fallback=3, replica_min=4, replica_max=9)
    )
    ports = {name: value for name, value in told.items() if "PORT" in name}
    assert ports == {
        "RAY_SERVE_HAPROXY_STATS_PORT": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": "2",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "3",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "4",
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": "5",
        "RAYCLUSTER_GRPC_PORTS": "8-9",
    }
    assert told["RAYCLUSTER_ENGINE_OFFSET"] == "2"


def test_haproxy_s_socket_has_room_in_a_socket_s_path() -> None:
    path = f"/tmp/rc-0123abcd/{data_path(Ports())['RAY_SERVE_HAPROXY_SOCKET_PATH']}"
    folder, _, file = path.rpartition("/")
    assert len(f"{folder}/{NODE_ID}/{file}{RELOADING}") < 108


def test_all_of_haproxy_s_files_lie_in_each_node_s_own_working_folder() -> None:
    """Serve's controller tells all nodes the paths of the head, where other nodes have others."""
    told = data_path(Ports())
    placed = {name for name, value in told.items() if value == "h" or value.startswith("h/")}
    assert placed == {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
        "RAY_SERVE_HAPROXY_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
    }


def test_the_kernel_chooses_what_ends_where_memory_is_used_up() -> None:
    """Ray's own guard ends the newest actors, Serve's controller before all."""
    told = data_path(Ports())
    assert told["RAY_memory_monitor_refresh_ms"] == told["RAY_worker_oom_score_adjustment"] == "0"
