"""What a drill found, its limits, and both as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.bench.limits import COMPARE, split_limit
from raycluster.bench.stats import percentile
from raycluster.core.errors import UsageError
from raycluster.drill.load import DrillRequest

SCHEMA = 1
TIMES = ("detect", "recover", "p99")
COUNTS = ("requests", "failed", "truncated", "retried")
_TO_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Report:
    """One drill. Times in seconds; None for `detect` and `recover` is "not within the limit".

    `began`, `injected_at` and `ended` are when, since the load began, the injection of the fault
    began and was done, and all was as before.
    """

    cluster: str
    fault: str
    victim: str
    rate: float
    answers: Sequence[DrillRequest]
    began: float
    injected_at: float
    ended: float
    detect: float | None
    recover: float | None

    @property
    def requests(self) -> int:
        """All that were sent."""
        return len(self.answers)

    @property
    def failed(self) -> int:
        """Those that got no whole answer, but for streams that were cut."""
        return sum(not answer.ok and not answer.cut for answer in self.answers)

    @property
    def truncated(self) -> int:
        """Streams that were cut: one that has begun is never asked for again."""
        return sum(answer.cut for answer in self.answers)

    @property
    def retried(self) -> int:
        """Those that this client or the gateway asked for at more than one place."""
        return sum(answer.retried or answer.tried > 1 for answer in self.answers)

    @property
    def p99(self) -> float | None:
        """Of the whole answers to requests sent between the fault and the end of it."""
        return _p99([a for a in self.answers if self.began <= a.at <= self.ended])

    @property
    def calm_p99(self) -> float | None:
        """The same of those before the fault."""
        return _p99([a for a in self.answers if a.at < self.began])

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single requests, of which only failed ones are shown."""
        bad = [a for a in self.answers if not a.ok]
        return {
            "schema": SCHEMA,
            "cluster": self.cluster,
            "fault": self.fault,
            "victim": self.victim,
            "rate": self.rate,
            **{name: getattr(self, name) for name in COUNTS},
            "inject_s": round(self.injected_at - self.began, 3),
            "detect_s": self.detect,
            "recover_s": self.recover,
            "p99_during_s": self.p99,
            "p99_before_s": self.calm_p99,
            "failures": [
                {
                    "after_fault_s": round(a.at - self.began, 3),
                    "truncated": a.cut,
                    "status": a.status,
                    "why": a.error,
                }
                for a in bad[:20]
            ],
        }

    def text(self) -> str:
        """Return the figures for a person."""
        first = [f"  {a.at - self.began:+.1f} s: {a.error}" for a in self.answers if not a.ok]
        lines = [
            f"{self.fault}: {self.victim}",
            f"requests   {self.requests} at {self.rate:g}/s: {self.failed} failed, "
            f"{self.truncated} streams cut, {self.retried} retried",
            f"p99        {_shown(self.p99)} during the fault, {_shown(self.calm_p99)} before",
            f"noticed    {_shown(self.detect)}",
            f"recovered  {_shown(self.recover)}",
            *first[:5],
        ]
        return "\n".join(lines)


def _p99(answers: Sequence[DrillRequest]) -> float | None:
    times = sorted(a.seconds for a in answers if a.ok)
    return percentile(times, 99) if times else None


def _shown(seconds: float | None) -> str:
    return "not within the limit" if seconds is None else f"{seconds:.2f} s"


@dataclass(frozen=True)
class DrillLimit:
    """One comparison with a figure of a report; times in seconds."""

    text: str
    name: str
    sign: str
    bound: float

    def miss(self, report: Report) -> str:
        """Return a sentence when the limit was missed, or ""."""
        value: float | None = getattr(report, self.name)
        if value is None:
            return f"{self.text}: not within the limit"
        if COMPARE[self.sign](value, self.bound):
            return ""
        return f"{self.text}: it is {value:g}{' s' if self.name in TIMES else ''}"


def parse(text: str) -> DrillLimit:
    """Return the limit in a text; raises UsageError that names what is possible."""
    name, sign, number, unit = split_limit(text, "failed==0", COMPARE)
    if name not in (*COUNTS, *TIMES):
        known = ", ".join((*COUNTS, *TIMES))
        raise UsageError(f"{name!r} is not measured", where="--assert", hint=f"one of {known}")
    allowed = _TO_S if name in TIMES else {"": 1.0}
    try:
        return DrillLimit(text.strip(), name, sign, float(number) * allowed[unit])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"{text!r}: {number}{unit} is not a {'time' if name in TIMES else 'count'}",
            where="--assert",
            hint="failed==0, or recover<60s",
        ) from error
