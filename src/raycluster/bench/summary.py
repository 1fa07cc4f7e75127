"""The result of a run as one value, and as versioned JSON; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raycluster.bench.baseline import Comparison
from raycluster.bench.dataset import DatasetSummary
from raycluster.bench.limits import Limit, SearchResult
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Load, Shape
from raycluster.bench.stats import Measures
from raycluster.bench.verdict import Circumstances, Grade, Verdict, worst
from raycluster.core.errors import MissedLimitError, RayclusterError

SCHEMA = 1


@dataclass(frozen=True)
class Level:
    """What one shape of load gave. `numbers` are those of its requests, ramp and all."""

    shape: Shape
    measures: Measures
    verdict: Verdict
    seen: Circumstances
    examples: tuple[RequestRecord, ...] = ()
    numbers: range = range(0)

    def to_json(self, limits: Sequence[Limit]) -> dict[str, Any]:
        return {
            "label": self.shape.label,
            "load": self.shape.to_json(),
            "verdict": asdict(self.verdict),
            **asdict(self.measures),
            "client": asdict(self.seen.client),
            "server": self.seen.server.to_json() if self.seen.server else None,
            "repeated": self.seen.repeated,
            "failures": [
                {"line": r.line, "failure": r.failure, "detail": r.detail} for r in self.examples
            ],
            "limits": [limit.to_json(self.measures) for limit in limits],
        }


@dataclass(frozen=True)
class BenchSummary:
    """A whole run. `started` is in seconds since the epoch; `base_url` holds no password."""

    started: float
    base_url: str
    model: str
    load: Load
    levels: tuple[Level, ...]
    census: DatasetSummary = field(default_factory=DatasetSummary)
    limits: tuple[Limit, ...] = ()
    comparison: Comparison | None = None
    found: SearchResult | None = None

    @property
    def grade(self) -> Grade:
        """The lowest grade of any level."""
        return worst([level.verdict for level in self.levels])

    @property
    def interrupted(self) -> bool:
        """Whether the run was cut short by the person."""
        return any(level.seen.interrupted for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its `schema` changes when a name does."""
        return {
            "schema": SCHEMA,
            "kind": "bench",
            "started": self.started,
            "target": {"base_url": self.base_url, "model": self.model},
            "dataset": self.census.to_json(),
            "load": self.load.to_json(),
            "verdict": self.grade,
            "levels": [level.to_json(self.limits) for level in self.levels],
            "baseline": asdict(self.comparison) if self.comparison else None,
            "find_max": asdict(self.found) if self.found else None,
        }

    def check(self) -> None:
        """Raise RayclusterError when nothing was answered, MissedLimitError for a missed limit."""
        for level in self.levels:
            if not level.measures.completed:
                reason = level.examples[0].detail if level.examples else "no reason given"
                raise RayclusterError(
                    f"all {level.measures.failed} requests failed; the first: {reason}",
                    where=level.shape.label,
                    hint="raycluster status",
                )
        missed = [
            (level.shape.label, limit.miss(level.measures))
            for level in self.levels
            for limit in self.limits
            if not limit.kept(level.measures)
        ]
        if missed:
            where = missed[0][0] if len(self.levels) > 1 else ""
            raise MissedLimitError("; ".join(text for _, text in missed), where=where)
        if self.found and self.found.kept is None and not self.interrupted:
            raise MissedLimitError("no rate meets the limits", where="--find-max")
