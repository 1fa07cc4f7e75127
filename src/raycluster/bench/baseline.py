"""This run against an earlier one: what became worse, and whether the two may be compared; pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.bench.schedule import Shape
from raycluster.core.errors import MissedLimitError, UsageError

LOWER_IS_BETTER = ("ttft_ms.p50", "ttft_ms.p95", "tpot_ms.p50", "e2el_ms.p50", "e2el_ms.p95")
HIGHER_IS_BETTER = ("request_throughput", "output_throughput")
_PARTS = {"schema", "verdict", "dataset", "load", "target", "levels"}
_HINT = "use the summary.json of an earlier run"


@dataclass(frozen=True)
class Change:
    """One figure, before and after; `worse` is a share, below zero when it became better."""

    where: str
    name: str
    before: float
    after: float
    worse: float

    def __str__(self) -> str:
        word = "worse" if self.worse > 0 else "better"
        figures = f"{self.before:,.2f} -> {self.after:,.2f}"
        return f"{self.where}: {self.name} {figures} ({abs(self.worse):.1%} {word})"


@dataclass(frozen=True)
class Comparison:
    """All changes, and what speaks against comparing the two runs."""

    changes: tuple[Change, ...]
    doubts: tuple[str, ...]

    def check(self, most: float) -> None:
        """Raise MissedLimitError when a figure became worse by more than the share `most`."""
        missed = [str(change) for change in self.changes if change.worse > most]
        if missed:
            what = f"worse than the baseline by more than {most:.1%}: {'; '.join(missed)}"
            raise MissedLimitError(what, where="--baseline", hint="; ".join(self.doubts))


def read_baseline(
    content: bytes, shapes: Sequence[Shape], *, schema: int, where: str
) -> Mapping[str, Any]:
    """Return an earlier run's JSON; raises UsageError when it is none, or none of `shapes`."""
    try:
        before = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}", where=where, hint=_HINT) from error
    if not isinstance(before, dict) or before.get("kind") != "bench" or _PARTS - before.keys():
        raise UsageError("not a result of raycluster bench", where=where, hint=_HINT)
    if before.get("schema") != schema:
        what = f"its schema version is {before.get('schema')!r}, not {schema}"
        raise UsageError(what, where=where, hint=_HINT)
    loads = [level["load"] for level in before["levels"]]
    if not any(shape.to_json() in loads for shape in shapes):
        raise UsageError("it has none of this run's load levels", where=where, hint=_HINT)
    return before


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], shapes: Sequence[Shape]
) -> Comparison:
    """Return how each level changed that both runs have; `shapes` are those of `after`."""
    changes = tuple(
        change
        for shape, new in zip(shapes, after["levels"], strict=False)
        for old in before["levels"]
        if old["load"] == new["load"]
        for change in _changes(shape.label, old, new)
    )
    return Comparison(changes, tuple(_doubts(before, after)))


def parse_share(text: str) -> float:
    """Return `5%` or `0.05` as a share; raises UsageError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise UsageError(f"{text!r} is not a share", where="--max-regress", hint="such as 5%")
    return share


def _changes(label: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        was, now = _figure(old, name), _figure(new, name)
        if was and now is not None:
            worse = (now - was) / was if name in LOWER_IS_BETTER else (was - now) / was
            yield Change(label, name.replace("_ms.", "_"), was, now, worse)
        elif was:
            yield Change(label, name.replace("_ms.", "_"), was, float("nan"), float("inf"))


def _doubts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name, run in (("the baseline", before), ("this run", after)):
        if run["verdict"] == "INVALID":
            yield f"{name} is INVALID"
    if before["dataset"].get("digest") != after["dataset"].get("digest"):
        yield "the prompts differ"
    for name in ("load", "target"):
        ours = {key: value for key, value in after[name].items() if key != "base_url"}
        theirs = {key: value for key, value in before[name].items() if key != "base_url"}
        if ours != theirs:
            yield f"{name} differs"


def _figure(level: Mapping[str, Any], name: str) -> float | None:
    measure, _, stat = name.partition(".")
    value = level.get(measure)
    if stat and isinstance(value, dict):
        value = value.get(stat)
    return float(value) if isinstance(value, int | float) else None
