"""The first page: does the cluster serve, how much, and how are its machines."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import units

from dashboards.parts import (
    REQUESTS_PER_SECOND,
    TOKENS_PER_SECOND,
    AnyPanel,
    Line,
    bars,
    figure,
    graph,
    page,
    wanted,
    warn,
)
from dashboards.queries import (
    CPU,
    DISK,
    GPU_BUSY,
    GPU_MEMORY,
    MEMORY,
    PER,
    READY,
    REQUESTS,
    RUNNING,
    WAITING,
    WANTED,
    failed_share,
    quantile,
    rate,
    tokens,
)

TTFT = "ray_raycluster_time_to_first_token_seconds"


def overview() -> dashboard.Dashboard:
    """Return the page that Grafana opens with."""
    return page(
        "overview",
        "Cluster overview",
        "Whether the cluster serves, how much, and how its machines are.",
        [
            ("Now", _now()),
            ("Requests", _requests()),
            ("Replicas", _replicas()),
            ("Machines", _machines()),
        ],
    )


def _now() -> list[AnyPanel]:
    return [
        figure(
            "Nodes that answer",
            "The share of nodes whose metrics Prometheus reads. Below 100%: `raycluster status` "
            "says which one is gone and what to do.",
            units.PercentUnit,
            Line('sum(up{job="ray"}) / count(up{job="ray"})', "nodes"),
            limits=wanted(1),
        ),
        figure(
            "Ready replicas",
            "Replicas of all models that pass the checks of the ingress and get requests.",
            units.Number,
            Line(f"sum({READY})", "replicas"),
            limits=wanted(1),
        ),
        figure(
            "Alerts that fire",
            "What each of them means and what to do stands at /alerts of Prometheus, which "
            "`raycluster tunnel` forwards.",
            units.Number,
            Line('sum(ALERTS{alertstate="firing"}) or vector(0)', "alerts"),
            limits=warn(1, bad=1),
        ),
        figure(
            "Fallback engines",
            "Replicas that a slower engine serves because vLLM does not start there. "
            "`raycluster status` says why.",
            units.Number,
            Line('sum(ray_raycluster_engine_info{reason!=""}) or vector(0)', "replicas"),
            limits=warn(1, bad=1),
        ),
        figure(
            "Requests",
            "Requests to the API that ended, per second, of all models.",
            REQUESTS_PER_SECOND,
            Line(f"sum({rate(REQUESTS)})", "requests"),
        ),
        figure(
            "Failed requests",
            "The share of requests that replicas answered with status 5xx. What the ingress "
            "refused never reached a replica: see the page Gateway and ingress.",
            units.PercentUnit,
            Line(failed_share(), "failed"),
            limits=warn(0.001, bad=0.01),
        ),
        figure(
            "Time to first token, p95",
            "19 of 20 streamed answers begin within this time, as the replicas see it.",
            units.Seconds,
            Line(f"{quantile(0.95, TTFT, by='')} >= 0", "p95"),  # which leaves NaN out
            limits=warn(2, bad=10),
        ),
        figure(
            "Tokens generated",
            "Per second, of all models and both engines.",
            TOKENS_PER_SECOND,
            Line(tokens("generation"), "tokens"),
        ),
    ]


def _requests() -> list[AnyPanel]:
    return [
        graph(
            "Requests by model",
            "Requests to the API that ended, per second.",
            REQUESTS_PER_SECOND,
            Line(f"sum by (model) ({rate(REQUESTS)})", "{{model}}"),
            stacked=True,
        ),
        graph(
            "Time to first token",
            "From a request's arrival at the replica to the first event of its streamed answer.",
            units.Seconds,
            Line(quantile(0.5, TTFT), "p50 {{model}}"),
            Line(quantile(0.95, TTFT), "p95 {{model}}"),
        ),
        graph(
            "Tokens",
            "Tokens read from prompts and tokens generated, per second, by both engines.",
            TOKENS_PER_SECOND,
            Line(tokens("prompt"), "prompt"),
            Line(tokens("generation"), "generated"),
        ),
    ]


def _replicas() -> list[AnyPanel]:
    return [
        graph(
            "Replicas by model",
            "Replicas that get requests, and how many Serve wants. An application has the name "
            "of its model, as far as it can stand in a path; `router` leads to several models.",
            units.Number,
            Line("application:replicas_ready:sum", "{{application}}"),
            Line(WANTED, "{{application}} wanted"),
        ),
        graph(
            "Running and waiting requests",
            "In vLLM's batch, and before it. A queue that grows wants more replicas.",
            units.Number,
            Line(f"sum by (model_name) ({RUNNING})", "running {{model_name}}"),
            Line(f"sum by (model_name) ({WAITING})", "waiting {{model_name}}"),
        ),
        bars(
            "Engines",
            "How many replicas each engine serves.",
            units.Number,
            Line("sum by (model, engine) (ray_raycluster_engine_info)", "{{model}}: {{engine}}"),
        ),
    ]


def _machines() -> list[AnyPanel]:
    return [
        graph(
            "CPU",
            "How busy each machine's CPUs are, all processes counted.",
            units.PercentUnit,
            Line(CPU, PER),
            top=1,
        ),
        graph(
            "Memory",
            "The share of each machine's memory that is in use.",
            units.PercentUnit,
            Line(MEMORY, PER),
            limits=warn(0.9, bad=0.95),
            top=1,
        ),
        graph(
            "Disk",
            "The share in use of the disk that holds Ray's files.",
            units.PercentUnit,
            Line(DISK, PER),
            limits=warn(0.8, bad=0.9),
            top=1,
        ),
        graph(
            "GPU utilization",
            "The mean over each machine's GPUs. Hosts without GPUs have none.",
            units.PercentUnit,
            Line(f"avg by (node) ({GPU_BUSY})", PER),
            width=12,
            top=1,
        ),
        graph(
            "GPU memory",
            "The share in use of each machine's GPU memory. vLLM takes its share at the start.",
            units.PercentUnit,
            Line(f"avg by (node) ({GPU_MEMORY})", PER),
            width=12,
            top=1,
        ),
    ]
