"""Looks at replicas -> what a model does for its clients, and what that costs; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raycluster.observe.engine_metrics import Service
from raycluster.spec import ClusterSpec

LEAST_S = 5.0
"""A window shorter than this holds too few answers for percentiles: they are since the start."""
LONGEST_S = 160.0
"""The last finite bound of the time to the first token; above it no figure is known."""


@dataclass(frozen=True, slots=True)
class ReplicaSample:
    """What one replica of `model` said at a monotonic moment."""

    at: float
    model: str
    service: Service


Look = Mapping[str, ReplicaSample]
"""One look at all replicas, by place: HOST:PORT."""


@dataclass(frozen=True)
class Latency:
    """Percentiles in seconds, infinite above LONGEST_S; None where there was no streamed answer.

    They are of the answers of the last `window_s` seconds, or with None of all since the replicas
    started: where there was none in a window, or the window is short.
    """

    p50: float | None
    p95: float | None
    window_s: float | None


@dataclass(frozen=True)
class Rates:
    """What happened in the last `window_s` seconds, each per second; None where nobody told."""

    source: Literal["replicas", "prometheus"]
    window_s: float
    requests: float | None
    errors: float | None
    tokens: float | None


@dataclass(frozen=True)
class ModelFigures:
    """One model. `answered` replicas told how they do now: None where the engine does not say.

    `running` and `waiting` requests are sums, `kv_cache_usage` (0 to 1) is that of the fullest.
    """

    answered: int = 0
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    rates: Rates | None = None
    first_token: Latency | None = None


@dataclass(frozen=True)
class HostCost:
    """What the hosts cost; `unpriced` are those of which the spec does not say.

    `per_million` generated tokens, at the rate of the moment; None where that is zero or unknown.
    """

    currency: str
    per_hour: float
    per_million: float | None
    unpriced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What Prometheus said of one model."""

    rates: Rates
    first_token: Latency


def figures(looks: Sequence[Look], model: str, told: Told | None = None) -> ModelFigures:
    """Return a model's figures from looks, the oldest first; rates from what was `told`, if any."""
    if not looks:
        return ModelFigures()
    now = {place: seen for place, seen in looks[-1].items() if seen.model == model}
    engines = [seen.service.engine for seen in now.values()]
    grown = _Growth.over(looks, now)
    return ModelFigures(
        len(now),
        _total(e.running for e in engines),
        _total(e.waiting for e in engines),
        max((u for e in engines if (u := e.kv_cache_usage) is not None), default=None),
        told.rates if told else grown.rates() if grown else None,
        told.first_token if told else _latency(now.values(), grown),
    )


@dataclass(frozen=True)
class _Growth:
    """By how much the counters of all replicas grew, and in how many seconds."""

    window_s: float
    pairs: tuple[tuple[float, Service | None, Service], ...] = field(repr=False)

    @classmethod
    def over(cls, looks: Sequence[Look], now: Look) -> _Growth | None:
        """Return the growth up to `now`; None while there is a replica of which it is unknown."""
        pairs = []
        for place, seen in now.items():
            before = next((old for look in looks[:-1] if (old := _same(look, place, seen))), None)
            elapsed = seen.at - (before.at if before else min(_moments(looks), default=seen.at))
            age = seen.service.engine.age
            if elapsed <= 0 or (before is None and (age is None or age > elapsed)):
                return None
            pairs.append((elapsed, before.service if before else None, seen.service))
        return cls(max(e for e, _, _ in pairs), tuple(pairs)) if pairs else None

    def rates(self) -> Rates:
        return Rates(
            "replicas",
            self.window_s,
            self._rate(lambda service: service.requests),
            self._rate(lambda service: service.errors),
            self._rate(lambda service: service.tokens),
        )

    def _rate(self, count: Callable[[Service], float | None]) -> float | None:
        rates = []
        for elapsed, before, after in self.pairs:
            first, last = count(before) if before else 0.0, count(after)
            if first is None or last is None:
                return None
            rates.append(max(0.0, last - first) / elapsed)
        return math.fsum(rates)

    def buckets(self) -> dict[float, float]:
        return _added(
            {b: n - (before.first_token.get(b, 0.0) if before else 0.0) for b, n in counts.items()}
            for _, before, after in self.pairs
            if (counts := after.first_token)
        )


def _same(look: Look, place: str, seen: ReplicaSample) -> ReplicaSample | None:
    """Return what the same process said in another look."""
    old = look.get(place)
    if old is None or old.service.engine.started != seen.service.engine.started:
        return None
    return old


def _moments(looks: Iterable[Look]) -> Iterable[float]:
    return (seen.at for look in looks for seen in look.values())


def _latency(now: Iterable[ReplicaSample], grown: _Growth | None) -> Latency:
    counts, window = grown.buckets() if grown else {}, grown.window_s if grown else None
    if window is None or window < LEAST_S or not max(counts.values(), default=0.0):
        counts, window = _added(seen.service.first_token for seen in now), None
    return Latency(quantile(0.5, counts), quantile(0.95, counts), window)


def _added(each: Iterable[Mapping[float, float]]) -> dict[float, float]:
    total: dict[float, float] = {}
    for counts in each:
        for bound, count in counts.items():
            total[bound] = total.get(bound, 0.0) + count
    return dict(sorted(total.items()))


def quantile(share: float, counts: Mapping[float, float]) -> float | None:
    """Return the value below which `share` of the observations lie, as Prometheus estimates it.

    `counts` are cumulative by upper bound, the last infinite. None without observations.
    """
    total = max(counts.values(), default=0.0)
    if total <= 0:
        return None
    rank, lower, below = share * total, 0.0, 0.0
    for bound, count in counts.items():
        if count >= rank and count > below:
            if math.isinf(bound):
                break
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return math.inf


def cost(spec: ClusterSpec, models: Mapping[str, ModelFigures]) -> HostCost | None:
    """Return what the cluster costs, None where the spec gives no price."""
    prices = {host.name: host.price_per_hour for host in spec.hosts}
    known = [price for price in prices.values() if price is not None]
    if not known:
        return None
    per_hour = math.fsum(known)
    unpriced = tuple(name for name, price in prices.items() if price is None)
    rates = [f.rates.tokens if f.rates else None for f in models.values()]
    tokens = None if None in rates or unpriced else _total(rates)
    per_million = per_hour / (tokens * 3600) * 1e6 if tokens else None
    return HostCost(spec.cluster.currency, per_hour, per_million, unpriced)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None
