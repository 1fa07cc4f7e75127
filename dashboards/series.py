"""The series that pages may name. A test on a real cluster finds every one of EVERYWHERE."""

from __future__ import annotations

import re
from collections.abc import Mapping

EVERYWHERE = frozenset(
    {
        # Prometheus, and what its rules record
        "up",
        "application:replicas_ready:sum",
        "application:replicas_wanted:max",
        # ours, and vLLM's, by way of Ray's exporter
        "ray_raycluster_engine_info",
        "ray_raycluster_engine_start_seconds",
        "ray_raycluster_request_duration_seconds_bucket",
        "ray_raycluster_requests_total",
        "ray_raycluster_time_to_first_token_seconds_bucket",
        "ray_vllm_generation_tokens_total",
        "ray_vllm_inter_token_latency_seconds_bucket",
        "ray_vllm_kv_cache_usage_perc",
        "ray_vllm_num_preemptions_total",
        "ray_vllm_num_requests_running",
        "ray_vllm_num_requests_waiting",
        "ray_vllm_prefix_cache_hits_total",
        "ray_vllm_prefix_cache_queries_total",
        "ray_vllm_prompt_tokens_total",
        "ray_vllm_request_generation_tokens_count",
        "ray_vllm_request_generation_tokens_sum",
        "ray_vllm_request_prefill_time_seconds_bucket",
        "ray_vllm_request_prompt_tokens_count",
        "ray_vllm_request_prompt_tokens_sum",
        "ray_vllm_request_queue_time_seconds_bucket",
        "ray_vllm_request_success_total",
        "ray_vllm_request_time_per_output_token_seconds_bucket",
        # Serve
        "ray_serve_deployment_replica_starts_total",
        # Ray's agent on each node
        "ray_node_cpu_utilization",
        "ray_node_disk_io_read_speed",
        "ray_node_disk_utilization_percentage",
        "ray_node_mem_total",
        "ray_node_mem_used",
        "ray_node_network_receive_speed",
        "ray_node_network_send_speed",
        # HAProxy on the head
        "haproxy_backend_active_servers",
        "haproxy_backend_current_sessions",
        "haproxy_backend_redispatch_warnings_total",
        "haproxy_backend_retry_warnings_total",
        "haproxy_frontend_bytes_in_total",
        "haproxy_frontend_bytes_out_total",
        "haproxy_frontend_current_sessions",
        "haproxy_frontend_http_requests_total",
        "haproxy_frontend_http_responses_total",
        # engines, by key
        "ray_raycluster_usage_requests_total",
        "ray_raycluster_usage_tokens_total",
        # the gateway, with `tls`
        "nginx_connections_active",
        "nginx_connections_reading",
        "nginx_connections_waiting",
        "nginx_connections_writing",
        "raycluster_gateway_certificate_expiry_timestamp_seconds",
    }
)
SOMETIMES: Mapping[str, str] = {
    "ALERTS": "only while an alert is pending or fires",
    "ray_raycluster_tokens_total": "only where transformers serves",
}
"""Series that a healthy cluster may lack while the panels that add them still show something."""

RAY_GPU = "Ray's agent finds a GPU"
EXPORTER = "a DCGM exporter runs and `gpu_exporter_port` names its port"
GPU_ONLY: Mapping[str, str] = {
    "ray_node_gpus_utilization": RAY_GPU,
    "ray_node_gram_available": RAY_GPU,
    "ray_node_gram_used": RAY_GPU,
    "ray_node_gpu_power_milliwatts": RAY_GPU,
    "ray_node_gpu_temperature_celsius": RAY_GPU,
    "DCGM_FI_DEV_MEM_COPY_UTIL": EXPORTER,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": EXPORTER,
    "DCGM_FI_DEV_XID_ERRORS": EXPORTER,
}
"""Series that are there only when ...; panels that name one are empty on hosts without GPUs."""

_WORDS = frozenset(
    {
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "or",
        "and",
        "unless",
        "offset",
        "bool",
    }
)


def named(expression: str) -> frozenset[str]:
    """Return the series that an expression of PromQL names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"(?<![\w.$])([A-Za-z_:][\w:]*)\b(?!\s*\()", bare)
    return frozenset(words) - _WORDS
