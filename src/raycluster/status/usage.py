"""What each key and model took of the cluster, from the counters that Prometheus has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from raycluster.core.errors import HostError
from raycluster.core.untrusted import Told, number_of, read_json
from raycluster.hosts.http import http_client

if TYPE_CHECKING:
    import httpx

    from raycluster.core.interfaces import Transport
    from raycluster.spec import ClusterSpec

By = Literal["key", "model"]
Series = Mapping[frozenset[tuple[str, str]], float]

NO_KEY = "-"
"""The owner whom engines count where a request came without a key."""

TOKENS = "ray_raycluster_usage_tokens_total"
REQUESTS = "ray_raycluster_usage_requests_total"
LOOK_BACK = "1d"
"""How long before a time a counter's value is still taken for the one at that time."""

_TIMEOUT_S = 60.0

SCRAPE_S = 10.0
"""Seconds from one look of Prometheus at a node to the next; the same as in its configuration."""


@dataclass(frozen=True)
class Row:
    """Requests and tokens of an owner and a model; "" for all of them.

    `prompt` includes `cached`. `cost` is None where no host has a price.
    """

    owner: str = ""
    model: str = ""
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    generation: int = 0
    cost: float | None = None

    @property
    def worked(self) -> int:
        """The tokens that engines had work with."""
        return self.prompt - self.cached + self.generation


@dataclass(frozen=True)
class UsageReport:
    """The rows of `seconds`, and what the hosts that have a price cost while they ran."""

    rows: tuple[Row, ...]
    seconds: int
    currency: str = ""
    cost: float | None = None

    @property
    def total(self) -> Row:
        """All rows in one."""
        return replace(_sum(self.rows), cost=self.cost)

    @property
    def per_million(self) -> float | None:
        """What a million of tokens cost that engines had work with; None where that is unknown."""
        worked = self.total.worked
        return None if self.cost is None or not worked else self.cost / worked * 1e6


def asked_at(
    transport: Transport, spec: ClusterSpec, seconds: int, by: By | None = None
) -> UsageReport:
    """Return what the head's Prometheus says. Raises HostError and AnswerError."""
    import httpx

    with http_client(transport, spec.ports.prometheus, timeout=_TIMEOUT_S) as client:
        try:
            return ask(client, spec, seconds, by)
        except httpx.HTTPError as error:
            raise HostError(
                f"Prometheus does not respond:  {error or type(error).__name__}",
                where=spec.head_host.name,
                hint="raycluster status",
            ) from error


def ask(client: httpx.Client, spec: ClusterSpec, seconds: int, by: By | None = None) -> UsageReport:
    """Return the usage of the last `seconds`, by owner and model, or by one of both.

    Raises httpx's errors, and AnswerError for an answer of another kind.
    """
    rows: dict[tuple[str, str], Row] = {}
    now = _now(client)
    for labels, grown in _growth(client, seconds, now):
        key = (
            "" if by == "model" else labels.get("owner", NO_KEY),
            "" if by == "key" else labels.get("model", ""),
        )
        field = labels.get("kind", "") if labels["__name__"] == TOKENS else "requests"
        row = rows.get(key, Row(*key))
        if field in ("requests", "prompt", "cached", "generation"):
            rows[key] = replace(row, **{field: getattr(row, field) + grown})
    cost = _cost(client, spec, seconds, now)
    worked = sum(row.worked for row in rows.values())
    split = [
        row if cost is None or not worked else replace(row, cost=cost * row.worked / worked)
        for _, row in sorted(rows.items())
    ]
    return UsageReport(tuple(split), seconds, spec.cluster.currency, cost)


def _now(client: httpx.Client) -> str:
    """Return the time at Prometheus, for all queries of one report, in seconds since 1970."""
    return _answer(client, "time()")["data"]["result"][1].text(40)


def _growth(
    client: httpx.Client, seconds: int, now: str
) -> Iterable[tuple[Mapping[str, str], int]]:
    """Yield by how much each series has grown, which is exact: a series begins with nothing.

    A replica that starts has series of its own, so that none falls; one that ended keeps its own.
    Requests and their tokens come with one query, so that none of them is from a later look.
    """
    both = f'{{__name__=~"{TOKENS}|{REQUESTS}"}}'
    before = _query(client, f"last_over_time({both}[{LOOK_BACK}] offset {seconds}s)", now)
    for labels, value in _query(client, f"last_over_time({both}[{seconds}s])", now).items():
        earlier = before.get(labels, 0.0)
        grown = value - earlier if value >= earlier else value
        yield dict(labels), round(grown)


def _cost(client: httpx.Client, spec: ClusterSpec, seconds: int, now: str) -> float | None:
    """Return what the hosts cost that have a price, while Prometheus saw them."""
    prices = {h.name: h.price_per_hour for h in spec.hosts if h.price_per_hour is not None}
    if not prices:
        return None
    query = f'sum by (node) (sum_over_time(up{{job="ray"}}[{seconds}s]))'
    found = _query(client, query, now)
    seen = {dict(labels).get("node", ""): looks for labels, looks in found.items()}
    hours = {name: seen.get(name, 0.0) * SCRAPE_S / 3600 for name in prices}
    return sum(price * hours[name] for name, price in prices.items())


def _query(client: httpx.Client, query: str, now: str) -> Series:
    result = _answer(client, query, now)["data"]["result"]
    return {_labels(s["metric"]): _value(s["value"][1]) for s in result}


def _answer(client: httpx.Client, query: str, now: str = "") -> Told:
    asked = {"query": query} | ({"time": now} if now else {})
    told = read_json(
        client.post("/api/v1/query", data=asked).raise_for_status().content, "Prometheus"
    )
    if told["status"].text(20) != "success":
        raise told.refused()
    return told


def _labels(metric: Told) -> frozenset[tuple[str, str]]:
    return frozenset((name, text.text()) for name, text in metric.named())


def _value(said: Told) -> float:
    return number_of(said.text(40)) or 0.0


def _sum(rows: Sequence[Row]) -> Row:
    return Row(
        requests=sum(row.requests for row in rows),
        prompt=sum(row.prompt for row in rows),
        cached=sum(row.cached for row in rows),
        generation=sum(row.generation for row in rows),
    )
