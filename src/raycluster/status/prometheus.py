"""What the cluster's Prometheus says of the last minute: one question, figures by model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raycluster.core.untrusted import Told as Said
from raycluster.core.untrusted import number_of, read_json
from raycluster.status.figures import LONGEST_S, Latency, Rates, Told

if TYPE_CHECKING:
    import httpx

WINDOW_S = 60.0

_REQUESTS = 'ray_raycluster_requests_total{{endpoint!~"/v1/models|other"{more}}}'
_BUCKETS = "ray_raycluster_time_to_first_token_seconds_bucket"
_VLLM = (
    'label_replace(rate(ray_vllm_generation_tokens_total[1m]), "model", "$1", "model_name", "(.+)")'
)
_TRANSFORMERS = 'rate(ray_raycluster_tokens_total{kind="generation"}[1m])'
_FIGURES = {
    "requests": f"sum by (model) (rate({_REQUESTS.format(more='')}[1m]))",
    "errors": "sum by (model) (rate({}[1m]))".format(_REQUESTS.format(more=', status=~"5.."')),
    "tokens": f"sum by (model) ({_VLLM} or {_TRANSFORMERS})",
    "own": "sum by (model) (rate(ray_raycluster_readiness_tokens_total[1m]))",
    "p50": f"histogram_quantile(0.5, sum by (le, model) (rate({_BUCKETS}[1m])))",
    "p95": f"histogram_quantile(0.95, sum by (le, model) (rate({_BUCKETS}[1m])))",
}
QUERY = " or ".join(
    f'label_replace({query}, "figure", "{name}", "", "")' for name, query in _FIGURES.items()
)


def ask(client: httpx.Client) -> Mapping[str, Told]:
    """Return the figures by model; none for a model that it does not know.

    Raises httpx's errors, and AnswerError for an answer of another kind.
    """
    answer = client.get("/api/v1/query", params={"query": QUERY}).raise_for_status()
    told = read_json(answer.content, "Prometheus")
    if told["status"].text(20) != "success":
        raise told.refused()
    return read(told["data"]["result"])


def read(result: Said) -> Mapping[str, Told]:
    """Return the figures in the answer to QUERY."""
    found: dict[str, dict[str, float]] = {}
    for series in result:
        labels, value = series["metric"], _number(series["value"][1].text(40))
        figure = labels["figure"].text(40)
        if value is None or (math.isinf(value) and figure not in ("p50", "p95")):
            continue
        if figure in _FIGURES:
            found.setdefault(labels["model"].text(1000), {})[figure] = value
    return {model: _told(of) for model, of in found.items() if "requests" in of}


def _number(said: str) -> float | None:
    """Return a number, infinite where a quantile is; None for NaN and what is no number."""
    return math.inf if said == "+Inf" else number_of(said)


def _told(of: Mapping[str, float]) -> Told:
    tokens = max(0.0, of["tokens"] - of.get("own", 0.0)) if "tokens" in of else None
    rates = Rates("prometheus", WINDOW_S, of["requests"], of.get("errors", 0.0), tokens)
    return Told(rates, Latency(_known(of.get("p50")), _known(of.get("p95")), WINDOW_S))


def _known(seconds: float | None) -> float | None:
    return math.inf if seconds is not None and seconds >= LONGEST_S else seconds
