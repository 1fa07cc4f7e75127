"""PromQL that several pages use, and the list of all series that any page may name."""

from __future__ import annotations

EVERY = "[$__rate_interval]"
PER = "{{node}}"

REQUESTS = "ray_raycluster_requests_total"
READY = 'application:replicas_ready:sum{application!="router"}'
WANTED = "application:replicas_wanted:max and on (application) application:replicas_ready:sum"
"""Recorded by Prometheus's rules. Serve goes on telling of applications that are gone."""
RUNNING, WAITING = "ray_vllm_num_requests_running", "ray_vllm_num_requests_waiting"


def rate(counter: str, where: str = "") -> str:
    """Return how fast a counter grows, per second; `where` chooses by labels, in braces."""
    return f"rate({counter}{where}{EVERY})"


def quantile(share: float, histogram: str, where: str = "", *, by: str = "model") -> str:
    """Return a quantile of what a histogram saw, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    buckets = rate(f"{histogram}_bucket", where)
    return f"histogram_quantile({share:g}, sum by ({labels}) ({buckets}))"


def mean(histogram: str, where: str, *, by: str) -> str:
    """Return the mean of what a histogram saw, for each value of the label `by`."""
    parts = [f"sum by ({by}) ({rate(histogram + end, where)})" for end in ("_sum", "_count")]
    return " / ".join(parts)


def total(*sums: str) -> str:
    """Return the sum of several queries without labels, each of which may have no series."""
    return " + ".join(f"({each} or vector(0))" for each in sums)


def failed_share() -> str:
    """Return the share of requests that ended with status 5xx; 0 without requests."""
    failed = rate(REQUESTS, '{status=~"5.."}')
    return f"(sum({failed}) or vector(0)) / clamp_min(sum({rate(REQUESTS)}), 1e-9)"


def tokens(kind: str, model: str = ".*") -> str:
    """Return the tokens a second of a kind (`prompt`, `generation`), of both engines."""
    vllm = rate(f"ray_vllm_{kind}_tokens_total", f'{{model_name=~"{model}"}}')
    ours = rate("ray_raycluster_tokens_total", f'{{model=~"{model}", kind="{kind}"}}')
    return total(f"sum({vllm})", f"sum({ours})")


NODE = '{node=~"$node"}'
CPU = "avg by (node) (ray_node_cpu_utilization) / 100"
MEMORY = "sum by (node) (ray_node_mem_used) / sum by (node) (ray_node_mem_total)"
DISK = "avg by (node) (ray_node_disk_utilization_percentage) / 100"
GPU_BUSY = "ray_node_gpus_utilization / 100"
GPU_MEMORY = "ray_node_gram_used / (ray_node_gram_used + ray_node_gram_available)"
