"""What `bench` measured of models on this cluster, kept in a file beside the spec."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raycluster.core.accelerators.choice import chosen
from raycluster.core.accelerators.values import clean, described
from raycluster.core.errors import HostError, MissedLimitError, RayclusterError, UsageError
from raycluster.core.interfaces import Facts
from raycluster.core.stored_json import decode
from raycluster.serve.model_refs import is_path
from raycluster.serve.settings import slugs
from raycluster.spec import ClusterSpec
from raycluster.spec.explain import suggest
from raycluster.state.cluster import ClusterState

FILE = "recipes.toml"
SUMMARY = 1
"""The schema of `bench --json` that is understood."""
GRADES = ("VALID", "SUSPECT")


@dataclass(frozen=True)
class Measured:
    """One measurement: what ran, on what, the load, and what came of it. Times in ms."""

    model: str
    cluster: str
    date: str
    load: str
    verdict: str = "VALID"
    hardware: Sequence[str] = ()
    vllm: str = ""
    ray: str = ""
    replicas: int = 1
    requests_per_second: float | None = None
    output_tokens_per_second: float | None = None
    ttft_p99: float | None = None
    tpot_p99: float | None = None
    limits: Sequence[str] = ()
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line of it."""
        rate = self.requests_per_second
        told = [f"{rate:,.1f} requests/s" if rate is not None else ""]
        if self.output_tokens_per_second is not None:
            told.append(f"{self.output_tokens_per_second:,.0f} tokens/s")
        if self.ttft_p99 is not None:
            told.append(f"TTFT p99 {self.ttft_p99:,.0f} ms")
        told.append(f"kept {', '.join(self.limits)}" if self.limits else "")
        told.append("" if self.verdict == "VALID" else self.verdict)
        on = ", ".join(self.hardware) or "unknown hardware"
        return f"{self.date}: {', '.join(filter(None, told))} with {self.load}, on {on}"


@dataclass(frozen=True)
class _Stats:
    p99: float | None = None


@dataclass(frozen=True)
class _Limit:
    limit: str
    kept: bool | None = None


@dataclass(frozen=True)
class _Level:
    label: str
    completed: int
    verdict: dict[str, Any]
    request_throughput: float | None = None
    output_throughput: float | None = None
    ttft_ms: _Stats | None = None
    tpot_ms: _Stats | None = None
    limits: tuple[_Limit, ...] = ()


@dataclass(frozen=True)
class _Target:
    model: str


@dataclass(frozen=True)
class _Summary:
    kind: str
    started: float
    target: _Target
    levels: tuple[_Level, ...]


def measured_in(content: bytes, where: str, cluster: str) -> Measured:
    """Return the best of a summary.json of `bench`: the fastest level that kept its limits.

    Raises UsageError where it is none, and MissedLimitError where no level kept them.
    """
    try:
        told = decode(content, _Summary, what="the summary", schema=SUMMARY, most=64 << 20)
        date = datetime.fromtimestamp(told.started, UTC).date().isoformat()
    except (RayclusterError, ValueError, OverflowError, OSError) as error:
        what = error.what if isinstance(error, RayclusterError) else "its time is none"
        raise UsageError(what, where=where, hint="give the summary.json of a bench -o") from error
    if told.kind != "bench":
        raise UsageError("is of no bench", where=where, hint="give the summary.json of a bench -o")
    good = [
        level
        for level in told.levels
        if level.completed
        and level.verdict.get("grade") in GRADES
        and all(limit.kept for limit in level.limits)
    ]
    if not good:
        raise MissedLimitError(
            "no level is valid and kept its limits: nothing was recorded",
            where=where,
            hint="read the verdicts in it, and measure again",
        )
    level = max(good, key=lambda each: each.request_throughput or 0)
    return Measured(
        model=told.target.model,
        date=date,
        load=clean(level.label, 100),
        verdict=str(level.verdict["grade"]),
        requests_per_second=_rounded(level.request_throughput),
        output_tokens_per_second=_rounded(level.output_throughput),
        ttft_p99=_rounded(level.ttft_ms.p99 if level.ttft_ms else None),
        tpot_p99=_rounded(level.tpot_ms.p99 if level.tpot_ms else None),
        limits=[limit.limit for limit in level.limits],
        cluster=cluster,
    )


def ran(
    spec: ClusterSpec, state: ClusterState, facts: Mapping[str, Facts], name: str
) -> dict[str, Any]:
    """Return what serves a model now: hardware, versions, replicas, engine arguments.

    Raises UsageError for a name that is not in the spec, HostError where no replica runs.
    """
    known = {each: model for model in spec.models for each in model.names}
    if name not in known:
        raise UsageError(
            f"{name!r} is not a model of the spec{suggest(name, known)}", where=spec.cluster.name
        )
    model = known[name]
    slug = slugs([each.name for each in spec.models])[model.name]
    app = next((each for each in state.apps or () if each.name == slug and each.serving), None)
    if app is None:
        raise HostError("has no replica now", where=name, hint="raycluster status")
    nodes = {r.node_id for r in app.replicas if r.state == "RUNNING"}
    places = [h for h in spec.hosts if (n := state.node(h)) and n.node_id in nodes]
    told = (app.config.get("args") or {}).get("model") or {}
    on = [
        described(chosen(h.gpus, facts[h.name].gpus)) if told.get("num_gpus") else "CPUs"
        for h in places
        if h.name in facts
    ]
    versions = next((f.versions for h in places if (f := state.hosts[h.name].role(h.role))), None)
    return {
        "model": model.name if is_path(model.location) else model.location,
        "cluster": spec.cluster.name,
        "hardware": [
            f"{count} x ({what})" if count > 1 else what for what, count in Counter(on).items()
        ],
        "vllm": versions.vllm if versions else "",
        "ray": versions.ray if versions else "",
        "replicas": app.serving,
        "engine_args": model.engine_args,
    }


def read_measured(folder: Path) -> tuple[Measured, ...]:
    """Return what was recorded beside a spec in this folder, nothing without it."""
    path = folder / FILE
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> tuple[Measured, ...]:
    """Return the measurements in a file's text. Raises UsageError."""
    try:
        plain = json.dumps(tomllib.loads(text).get("measured", []), default=str)
        return decode(plain, tuple[Measured, ...], what="it", most=16 << 20)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid TOML: {error}", where=where) from error
    except RayclusterError as error:
        raise UsageError(error.what, where=where, hint="mend or remove it") from error


def latest(every: Iterable[Measured]) -> dict[str, Measured]:
    """Return the newest measurement of each model."""
    return {each.model: each for each in sorted(every, key=lambda m: m.date)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
