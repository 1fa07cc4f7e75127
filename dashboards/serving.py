"""How models are served: latency, throughput, tokens, queue, KV cache, engines."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import units

from dashboards.parts import (
    REQUESTS_PER_SECOND,
    TOKENS_PER_SECOND,
    AnyPanel,
    Line,
    bars,
    chooser,
    graph,
    page,
    warn,
)
from dashboards.queries import REQUESTS, RUNNING, WAITING, mean, quantile, rate, tokens

STARTS = "ray_serve_deployment_replica_starts_total"
AS_REPLICA = f"* on (WorkerId) group_left (replica) group by (WorkerId, replica) ({STARTS})"
"""Gives vLLM's figures the name that Serve has for the replica."""
OURS, VLLM = '{model=~"$model"}', '{model_name=~"$model"}'


def serving() -> dashboard.Dashboard:
    """Return the page of the models."""
    return page(
        "serving",
        "Model serving",
        "Latency, throughput, tokens, queue, KV cache and engine of each model. Latencies are "
        "those that replicas see: the way through gateway and network comes on top.",
        [
            ("Latency", _latency()),
            ("Where the time goes (vLLM)", _phases()),
            ("Throughput", _throughput()),
            ("Queue and batch (vLLM)", _queue()),
            ("KV cache (vLLM)", _cache()),
            ("Engines and replicas", _engines()),
        ],
        [chooser("model", "Model", "ray_raycluster_engine_info")],
    )


def _quantiles(histogram: str, where: str, by: str) -> list[Line]:
    return [
        Line(quantile(share, histogram, where, by=by), f"p{share * 100:g} {{{{{by}}}}}")
        for share in (0.5, 0.95, 0.99)
    ]


def _latency() -> list[AnyPanel]:
    return [
        graph(
            "Time to first token (TTFT)",
            "From a request's arrival at the replica to the first event of its streamed answer. "
            "Answers that are not streamed do not count.",
            units.Seconds,
            *_quantiles("ray_raycluster_time_to_first_token_seconds", OURS, "model"),
        ),
        graph(
            "Time per output token (TPOT)",
            "Of each request: the time after its first token, divided by the tokens after it.",
            units.Seconds,
            *_quantiles("ray_vllm_request_time_per_output_token_seconds", VLLM, "model_name"),
        ),
        graph(
            "Duration of requests",
            "From a request's arrival at the replica to the end of its answer.",
            units.Seconds,
            *_quantiles("ray_raycluster_request_duration_seconds", OURS, "model"),
        ),
    ]


def _phases() -> list[AnyPanel]:
    return [
        graph(
            "Waiting in the queue",
            "From arrival in the engine to the first step of the batch that holds the request.",
            units.Seconds,
            *_quantiles("ray_vllm_request_queue_time_seconds", VLLM, "model_name"),
        ),
        graph(
            "Reading the prompt (prefill)",
            "From the first step to the first token. Long prompts and full batches stretch it.",
            units.Seconds,
            *_quantiles("ray_vllm_request_prefill_time_seconds", VLLM, "model_name"),
        ),
        graph(
            "Between two tokens",
            "The gaps between tokens of one answer. High p99: other prompts come between.",
            units.Seconds,
            *_quantiles("ray_vllm_inter_token_latency_seconds", VLLM, "model_name"),
        ),
    ]


def _throughput() -> list[AnyPanel]:
    by_status = f"sum by (status) ({rate(REQUESTS, OURS)})"
    by_endpoint = f"sum by (endpoint) ({rate(REQUESTS, OURS)})"
    return [
        graph(
            "Requests by status",
            "Requests that ended, per second. 499: the client left before the end of the answer.",
            REQUESTS_PER_SECOND,
            Line(by_status, "{{status}}"),
            stacked=True,
        ),
        graph(
            "Requests by endpoint",
            "Requests that ended, per second.",
            REQUESTS_PER_SECOND,
            Line(by_endpoint, "{{endpoint}}"),
            stacked=True,
        ),
        graph(
            "Tokens",
            "Tokens read from prompts and tokens generated, per second, by both engines.",
            TOKENS_PER_SECOND,
            Line(tokens("prompt", "$model"), "prompt"),
            Line(tokens("generation", "$model"), "generated"),
        ),
        graph(
            "Tokens of a request (vLLM)",
            "The mean length of prompts and of answers.",
            units.Number,
            Line(
                mean("ray_vllm_request_prompt_tokens", VLLM, by="model_name"),
                "{{model_name}} prompt",
            ),
            Line(
                mean("ray_vllm_request_generation_tokens", VLLM, by="model_name"),
                "{{model_name}} answer",
            ),
            width=12,
        ),
        graph(
            "How answers end (vLLM)",
            "stop: by the model; length: by max_tokens or the context; abort: the client left.",
            REQUESTS_PER_SECOND,
            Line(
                f"sum by (finished_reason) ({rate('ray_vllm_request_success_total', VLLM)})",
                "{{finished_reason}}",
            ),
            width=12,
            stacked=True,
        ),
    ]


def _queue() -> list[AnyPanel]:
    return [
        graph(
            "Running requests",
            "In the engines' batches.",
            units.Number,
            Line(f"sum by (model_name) ({RUNNING}{VLLM})", "{{model_name}}"),
        ),
        graph(
            "Waiting requests",
            "In the engines, before the batch. A queue that grows wants more replicas.",
            units.Number,
            Line(f"sum by (model_name) ({WAITING}{VLLM})", "{{model_name}}"),
        ),
        graph(
            "Requests at each replica",
            "Running and waiting. Replicas of one model should have about the same.",
            units.Number,
            Line(
                f"sum by (node, replica) (({RUNNING}{VLLM} + {WAITING}{VLLM}) {AS_REPLICA})",
                "{{node}} {{replica}}",
            ),
        ),
    ]


def _cache() -> list[AnyPanel]:
    hits, queries = (f"ray_vllm_prefix_cache_{word}_total{VLLM}" for word in ("hits", "queries"))
    return [
        graph(
            "KV cache in use",
            "The fullest replica of each model. At 100% requests wait or are preempted.",
            units.PercentUnit,
            Line(f"max by (model_name) (ray_vllm_kv_cache_usage_perc{VLLM})", "{{model_name}}"),
            limits=warn(0.9, bad=0.98),
            top=1,
        ),
        graph(
            "Prompt tokens found in the prefix cache",
            "Of the tokens of all prompts, those whose work was already done.",
            units.PercentUnit,
            Line(
                f"sum by (model_name) ({rate(hits)}) / sum by (model_name) ({rate(queries)})",
                "{{model_name}}",
            ),
            top=1,
        ),
        graph(
            "Preemptions",
            "Requests per second that lost their place in a full KV cache and are done again. "
            "Above zero for long: fewer requests at once, a shorter context, or more memory.",
            units.CountsPerSecond,
            Line(
                f"sum by (model_name) ({rate('ray_vllm_num_preemptions_total', VLLM)})",
                "{{model_name}}",
            ),
        ),
    ]


def _engines() -> list[AnyPanel]:
    return [
        bars(
            "Engines",
            "How many replicas each engine serves. Any other than vLLM is much slower.",
            units.Number,
            Line(
                f"sum by (model, engine) (ray_raycluster_engine_info{OURS})",
                "{{model}}: {{engine}}",
            ),
        ),
        bars(
            "The engine's last start",
            "Seconds of each phase, of the slowest replica.",
            units.Seconds,
            Line(
                'max by (model, phase) (ray_raycluster_engine_start_seconds{model=~"$model",'
                ' phase!="total"})',
                "{{model}}: {{phase}}",
            ),
        ),
        graph(
            "Starts of replicas",
            "Replicas that began in the last 10 minutes, restarts among them. More than a rollout "
            "or the load explains: `raycluster logs app` says why they end.",
            units.Number,
            Line(
                f"count by (application) (last_over_time({STARTS}[10m]) unless {STARTS} offset 10m)"
                f" or 0 * count by (application) ({STARTS})",
                "{{application}}",
            ),
        ),
    ]
