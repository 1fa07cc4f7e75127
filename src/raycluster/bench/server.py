"""What the servers did during a level: looks at replicas and GPUs -> figures; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from raycluster.observe.engine_metrics import GpuSample, Reading

MOST_SAMPLES = 300
NEW_S = 5.0
"""By how much a process may seem older than it is: the seconds of two clocks are compared."""


@dataclass(frozen=True, slots=True)
class Look:
    """What all replicas (by place, HOST:PORT) and GPUs said at about one monotonic moment.

    `silent` are the places and hosts that did not answer.
    """

    at: float
    replicas: Mapping[str, Reading]
    gpus: tuple[GpuSample, ...] = ()
    silent: frozenset[str] = frozenset()

    def missed(self, place: str) -> bool:
        """Whether the place, or its host, did not answer."""
        return place in self.silent or place.rpartition(":")[0] in self.silent


class ServerWatch(Protocol):
    """Looks at the servers while a level runs. A call may take seconds, and raises nothing."""

    def begin(self) -> None:
        """Look once, and then again and again beside the caller; to be called before the load."""

    def end(self, origin: float, ramp: float = 0.0) -> ServerFigures | None:
        """Stop after a last look.

        `origin` is when the level began, on the monotonic clock, `ramp` its seconds that do not
        count in means and maxima.
        """


@dataclass(frozen=True)
class Spread:
    """A figure over the looks while the level ran."""

    mean: float
    max: float


@dataclass(frozen=True)
class ReplicaLife:
    """What one replica did; `came` and `went` are seconds since the level began, None: it stayed.

    They are when it was first seen, and last.
    """

    place: str
    requests: int | None
    generation_tokens: int | None
    came: float | None
    went: float | None


@dataclass(frozen=True)
class GpuUse:
    """What one GPU did in the level."""

    host: str
    index: str
    name: str
    utilization: Spread | None
    memory_bytes: Spread | None
    total_bytes: float | None


@dataclass(frozen=True)
class Sample:
    """One look, `t` seconds after the level began; the first is from before.

    Running and waiting are sums over the replicas, the KV cache's usage and the GPUs' utilization
    means between 0 and 1, the memory that of the fullest GPU.
    """

    t: float
    running: float | None
    waiting: float | None
    kv_cache_usage: float | None
    kv_cache_usage_max: float | None
    gpu_utilization: float | None
    gpu_memory_bytes: float | None
    replicas: int


@dataclass(frozen=True)
class ServerFigures:
    """One level as the servers saw it; None where nobody told. Counts are those of the level.

    `unanswered` counts the questions to a replica or node that got no answer.
    """

    running: Spread | None
    waiting: Spread | None
    kv_cache_usage: Spread | None
    gpu_utilization: Spread | None
    gpu_memory_bytes: Spread | None
    prompt_tokens: int | None
    generation_tokens: int | None
    prefix_cache_queries: int | None
    prefix_cache_hits: int | None
    preemptions: int | None
    requests: int | None
    fewest_replicas: int
    most_replicas: int
    replicas: tuple[ReplicaLife, ...]
    gpus: tuple[GpuUse, ...]
    unanswered: int
    samples: tuple[Sample, ...] = field(repr=False)

    @property
    def prefix_cache_hit_rate(self) -> float | None:
        """The share of the prompts' tokens that the prefix cache held."""
        if not self.prefix_cache_queries or self.prefix_cache_hits is None:
            return None
        return self.prefix_cache_hits / self.prefix_cache_queries

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values, with at most MOST_SAMPLES samples."""
        return asdict(self) | {
            "prefix_cache_hit_rate": self.prefix_cache_hit_rate,
            "replicas": [asdict(replica) for replica in self.replicas],
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "samples": [_rounded(asdict(sample)) for sample in _thinned(self.samples)],
        }


def summarize(looks: Sequence[Look], origin: float, ramp: float = 0.0) -> ServerFigures | None:
    """Return the figures of a level; the first look is from before it, the last from after it.

    None where nothing was seen, or where several servers answer in turn at one place.
    """
    looks = list(_filled(looks))
    lives = list(_lives(looks))
    if not lives or any(life.another for life in lives):
        return None
    samples = tuple(_sample(look, origin) for look in looks)
    during = [sample for sample in samples[1:-1] if sample.t >= ramp]

    def total(name: str) -> int | None:
        return _whole(life.count(name) for life in lives)

    return ServerFigures(
        running=_spread(s.running for s in during),
        waiting=_spread(s.waiting for s in during),
        kv_cache_usage=_spread(
            (s.kv_cache_usage for s in during), (s.kv_cache_usage_max for s in during)
        ),
        gpu_utilization=_spread(s.gpu_utilization for s in during),
        gpu_memory_bytes=_spread(s.gpu_memory_bytes for s in during),
        prompt_tokens=total("prompt_tokens"),
        generation_tokens=total("generation_tokens"),
        prefix_cache_queries=total("prefix_cache_queries"),
        prefix_cache_hits=total("prefix_cache_hits"),
        preemptions=total("preemptions"),
        requests=total("requests"),
        fewest_replicas=min(sample.replicas for sample in samples),
        most_replicas=max(sample.replicas for sample in samples),
        replicas=tuple(life.replica(origin) for life in lives),
        gpus=tuple(_gpus(look for look in looks[1:-1] if look.at - origin >= ramp)),
        unanswered=sum(len(look.silent) for look in looks),
        samples=samples,
    )


@dataclass(frozen=True)
class _Life:
    """One process at one place: its first and last reading, and when they were taken.

    `new`: it began after the first look. `gone`: it was not there at the last. `another`: it stands
    beside an older one at the same place.
    """

    place: str
    first: tuple[float, Reading]
    last: tuple[float, Reading]
    new: bool
    gone: bool
    another: bool

    def count(self, name: str) -> float | None:
        """Return by how much a counter grew in the level."""
        before, after = getattr(self.first[1], name), getattr(self.last[1], name)
        if before is None or after is None:
            return None
        return float(after if self.new or after < before else after - before)

    def replica(self, origin: float) -> ReplicaLife:
        return ReplicaLife(
            self.place,
            _whole([self.count("requests")]),
            _whole([self.count("generation_tokens")]),
            round(self.first[0] - origin, 1) if self.new else None,
            round(self.last[0] - origin, 1) if self.gone else None,
        )


def _filled(looks: Iterable[Look]) -> Iterator[Look]:
    """Yield the looks with what silent places said last."""
    known: dict[str, Reading] = {}
    for look in looks:
        known = {p: r for p, r in known.items() if look.missed(p)} | dict(look.replicas)
        yield Look(look.at, known, look.gpus, look.silent)


def _lives(looks: Sequence[Look]) -> Iterator[_Life]:
    seen: dict[tuple[str, float], list[tuple[float, Reading]]] = {}
    for look in looks:
        for place, reading in look.replicas.items():
            seen.setdefault((place, reading.started), []).append((look.at, reading))
    for (place, started), readings in sorted(seen.items()):
        at, reading = readings[0]
        late = at > looks[0].at
        if reading.age is None:
            new = late and not looks[0].missed(place)
        else:
            new = late and reading.age < at - looks[0].at + NEW_S
        now = looks[-1].replicas.get(place)
        yield _Life(
            place,
            readings[0],
            readings[-1],
            new=new,
            gone=now is None or now.started != started,
            another=late and not new and place in looks[0].replicas,
        )


def _sample(look: Look, origin: float) -> Sample:
    replicas = look.replicas.values()
    usage = _told(r.kv_cache_usage for r in replicas)
    running, waiting = _told(r.running for r in replicas), _told(r.waiting for r in replicas)
    busy = _told(gpu.utilization for gpu in look.gpus)
    return Sample(
        look.at - origin,
        math.fsum(running) if running else None,
        math.fsum(waiting) if waiting else None,
        _mean(usage),
        max(usage, default=None),
        _mean(busy),
        max((gpu.memory_bytes for gpu in look.gpus), default=None),
        len(replicas),
    )


def _gpus(looks: Iterable[Look]) -> Iterator[GpuUse]:
    seen: dict[tuple[str, str], list[GpuSample]] = {}
    for look in looks:
        for gpu in look.gpus:
            seen.setdefault((gpu.host, gpu.index), []).append(gpu)
    for (host, index), each in seen.items():
        busy, used = _spread(g.utilization for g in each), _spread(g.memory_bytes for g in each)
        yield GpuUse(host, index, each[-1].name, busy, used, each[-1].total_bytes)


def _spread(values: Iterable[float | None], tops: Iterable[float | None] = ()) -> Spread | None:
    """Return the mean of the values, and the highest of the tops, or else of the values."""
    told = _told(values)
    return Spread(math.fsum(told) / len(told), max(_told(tops) or told)) if told else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _told(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _whole(values: Iterable[float | None]) -> int | None:
    told = _told(values)
    return round(math.fsum(told)) if told else None


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    stride = math.ceil((len(samples) - 1) / (MOST_SAMPLES - 1))
    return samples if stride <= 1 else [*samples[:-1:stride], samples[-1]]


def _rounded(sample: Mapping[str, float | None]) -> dict[str, float | None]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in sample.items()}
