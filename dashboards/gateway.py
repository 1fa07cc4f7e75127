"""The way in: nginx with the keys, then Serve's HAProxy, which passes requests to replicas."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import units

from dashboards.parts import (
    REQUESTS_PER_SECOND,
    AnyPanel,
    Line,
    figure,
    graph,
    page,
    wanted,
    warn,
)
from dashboards.queries import PER, rate

DAY = 86400
IN = '{proxy="http_frontend"}'
MODELS = '{proxy=~"http-.+"}'
"""The ways to applications, which HAProxy knows as `http-` and the application's name."""

USAGE_REQUESTS = "ray_raycluster_usage_requests_total"
USAGE_TOKENS = "ray_raycluster_usage_tokens_total"
CACHED, PROMPT, READ_OR_MADE = '{kind="cached"}', '{kind="prompt"}', '{kind!="cached"}'


def gateway() -> dashboard.Dashboard:
    """Return the page of the gateway and the ingress."""
    return page(
        "gateway",
        "Gateway and ingress",
        "What clients meet before a replica: the gateway (nginx), where the spec has one, and "
        "the HAProxy of Serve on the head.",
        [
            ("Now", _now()),
            ("Ingress (HAProxy on the head)", _ingress()),
            ("Ways to the models", _backends()),
            ("Keys", _keys()),
            ("Gateway (nginx)", _gateway()),
        ],
    )


def _now() -> list[AnyPanel]:
    answered = f"sum({rate('haproxy_frontend_http_responses_total', IN)})"
    failed = rate("haproxy_frontend_http_responses_total", '{proxy="http_frontend", code="5xx"}')
    return [
        figure(
            "Gateways that answer",
            "The share of gateways that Prometheus reaches.",
            units.PercentUnit,
            Line('sum(up{job="gateway"}) / count(up{job="gateway"})', "gateways"),
            limits=wanted(1),
        ),
        figure(
            "Certificate",
            "Until the gateway's certificate ends. Renew the files that [gateway.tls] names and "
            "run `raycluster up`; one of the cluster's own lasts until 2036.",
            units.Seconds,
            Line("min(raycluster_gateway_certificate_expiry_timestamp_seconds) - time()", "left"),
            limits=wanted(30 * DAY, fair=14 * DAY),
        ),
        figure(
            "Requests at the ingress",
            "Per second, also those that no replica took.",
            REQUESTS_PER_SECOND,
            Line(f"sum({rate('haproxy_frontend_http_requests_total', IN)})", "requests"),
        ),
        figure(
            "Failed at the ingress",
            "The share of answers with status 5xx, refusals for want of replicas among them.",
            units.PercentUnit,
            Line(f"sum({failed}) / clamp_min({answered}, 1e-9)", "failed"),
            limits=warn(0.001, bad=0.01),
        ),
    ]


def _ingress() -> list[AnyPanel]:
    return [
        graph(
            "Answers by status",
            "Per second. 4xx are clients' own mistakes; 429 and 503 want more replicas.",
            REQUESTS_PER_SECOND,
            Line(
                f"sum by (code) ({rate('haproxy_frontend_http_responses_total', IN)})",
                "{{code}}",
            ),
            stacked=True,
        ),
        graph(
            "Open connections",
            "Of clients and gateways with the ingress. A stream holds one until it ends.",
            units.Number,
            Line(f"sum(haproxy_frontend_current_sessions{IN})", "connections"),
        ),
        graph(
            "Traffic",
            "Bytes of requests and of answers, per second.",
            units.BytesPerSecondIEC,
            Line(f"sum({rate('haproxy_frontend_bytes_in_total', IN)})", "requests"),
            Line(f"sum({rate('haproxy_frontend_bytes_out_total', IN)})", "answers"),
        ),
    ]


def _backends() -> list[AnyPanel]:
    return [
        graph(
            "Replicas that take requests",
            "By the checks of the ingress, which are faster than Serve's.",
            units.Number,
            Line(f"sum by (proxy) (haproxy_backend_active_servers{MODELS})", "{{proxy}}"),
        ),
        graph(
            "Requests on their way",
            "Sent to replicas and not answered to the end.",
            units.Number,
            Line(f"sum by (proxy) (haproxy_backend_current_sessions{MODELS})", "{{proxy}}"),
        ),
        graph(
            "Sent again",
            "Per second: to the same replica after a failed try, or to another one. Clients see "
            "nothing of it; many of them mean that replicas end or hang.",
            units.CountsPerSecond,
            Line(
                f"sum by (proxy) ({rate('haproxy_backend_retry_warnings_total', MODELS)})",
                "{{proxy}} again",
            ),
            Line(
                f"sum by (proxy) ({rate('haproxy_backend_redispatch_warnings_total', MODELS)})",
                "{{proxy}} to another",
            ),
        ),
    ]


def _keys() -> list[AnyPanel]:
    return [
        graph(
            "Requests by key",
            "Per second, that engines were asked; `-` came without a key, such as our own checks.",
            REQUESTS_PER_SECOND,
            Line(f"sum by (owner) ({rate(USAGE_REQUESTS)})", "{{owner}}"),
            stacked=True,
        ),
        graph(
            "Tokens by key",
            "Per second, read from prompts and generated, counted when a request ends or is given "
            "up. `raycluster usage` sums them over days.",
            units.CountsPerSecond,
            Line(f"sum by (owner) ({rate(USAGE_TOKENS, READ_OR_MADE)})", "{{owner}}"),
            stacked=True,
        ),
        graph(
            "Tokens from a cache",
            "The share of the prompts' tokens that engines did not have to read again, by key.",
            units.PercentUnit,
            Line(
                f"sum by (owner) ({rate(USAGE_TOKENS, CACHED)}) / "
                f"clamp_min(sum by (owner) ({rate(USAGE_TOKENS, PROMPT)}), 1e-9)",
                "{{owner}}",
            ),
        ),
    ]


def _gateway() -> list[AnyPanel]:
    return [
        graph(
            "Connections of each gateway",
            "All that are open, those that wait for a next request among them.",
            units.Number,
            Line("nginx_connections_active", PER),
            width=12,
        ),
        graph(
            "What connections do",
            "reading: a request comes in; writing: an answer is made or sent; waiting: idle.",
            units.Number,
            Line("sum(nginx_connections_reading)", "reading"),
            Line("sum(nginx_connections_writing)", "writing"),
            Line("sum(nginx_connections_waiting)", "waiting"),
            width=12,
            stacked=True,
        ),
    ]
