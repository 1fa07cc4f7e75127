"""Limits such as `ttft_p95<3s`: whether a level keeps them, and up to which rate; pure."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from raycluster.bench.schedule import Open
from raycluster.bench.stats import Bound, Measures, SampleStats
from raycluster.core.errors import UsageError

_TIMES = ("ttft", "tpot", "itl", "event_gap", "e2el", "first_text")
TIMES = (*_TIMES, "ttft_from_intended", "e2el_from_intended", "client_delay")
PLAIN = (
    *("error_rate", "completed", "failed", "duration", "request_throughput"),
    *("output_throughput", "total_token_throughput", "total_input_tokens", "total_output_tokens"),
    "request_goodput",
)
STATS = tuple(field.name for field in fields(SampleStats) if field.name != "count")
COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BOUNDS = ("<", "<=", ">", ">=")  # a measured figure is never exactly another
_TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
_LIMIT = re.compile(
    r"\s*([a-z0-9_]+)\s*(<=|>=|==|<|>)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z/%]*)\s*"
)


@dataclass(frozen=True)
class Limit:
    """One comparison; `bound` is in the unit of the measure (ms for times, a share for rates)."""

    text: str
    name: str
    stat: str
    sign: str
    bound: float

    def from_intended(self) -> Limit:
        """Return the limit on the latency that counts from when the request was due."""
        name = f"{self.name}_from_intended"
        return replace(self, name=name) if name in TIMES else self

    def value(self, measures: Measures) -> float | None:
        """Return the measured figure, None where it was not measured."""
        if not self.stat:
            value: float | None = getattr(measures, self.name)
            return value
        spread: SampleStats | None = getattr(measures, f"{self.name}_ms")
        figure: float | None = None if spread is None else getattr(spread, self.stat)
        return figure

    def kept(self, measures: Measures) -> bool:
        """Return whether the figure was measured and is within the bound."""
        value = self.value(measures)
        return value is not None and COMPARE[self.sign](value, self.bound)

    def to_json(self, measures: Measures) -> dict[str, Any]:
        """Return the limit and what became of it as plain values."""
        return {"limit": self.text, "value": self.value(measures), "kept": self.kept(measures)}

    def miss(self, measures: Measures) -> str:
        """Return a sentence about a limit that was not kept."""
        value = self.value(measures)
        if value is None:
            return f"{self.text}: not measured"
        if self.name == "error_rate":
            return f"{self.text}: it is {value:.2%}"
        return f"{self.text}: it is {value:,.2f}{' ms' if self.stat else ''}"


def parse_limit(text: str) -> Limit:
    """Return the limit in a text; raises UsageError that names what is possible."""
    name, sign, number, unit = split_limit(text, "ttft_p95<3s", _BOUNDS)
    measure, stat = _measure(name)
    try:
        bound = float(number) * _factor(measure, stat, unit)
    except ValueError as error:
        hint = "times need a unit (us, ms, s, m); error_rate takes %"
        raise UsageError(f"{text!r}: {error}", where="--assert", hint=hint) from error
    return Limit(text.strip(), measure, stat, sign, bound)


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Return limits with commas between them; raises UsageError."""
    return tuple(parse_limit(part) for part in text.split(","))


def parse_bounds(text: str) -> tuple[Bound, ...]:
    """Return `ttft<500ms,tpot<50ms` as bounds of one request; raises UsageError."""
    return tuple(_bound(part) for part in text.split(","))


def _bound(text: str) -> Bound:
    hint = "ttft<500ms, tpot<50ms or e2el<3s, with commas between"
    match = _LIMIT.fullmatch(text)
    names = ("ttft", "tpot", "e2el")
    if not match or match[1] not in names or match[2] not in {"<", "<="} or match[4] not in _TO_MS:
        raise UsageError(f"{text.strip()!r} is not valid", where="--goodput", hint=hint)
    return Bound(match[1], float(match[3]) * _TO_MS[match[4]])


def split_limit(text: str, example: str, signs: Iterable[str]) -> tuple[str, str, str, str]:
    """Return name, sign, number and unit of a limit. Raises UsageError that shows `example`."""
    match = _LIMIT.fullmatch(text)
    if match is None or match[2] not in signs:
        raise UsageError(f"{text!r} is not a limit", where="--assert", hint=f"write {example!r}")
    name, sign, number, unit = match.groups()
    return name, sign, number, unit


def _measure(name: str) -> tuple[str, str]:
    if name in PLAIN:
        return name, ""
    measure, _, stat = name.rpartition("_")
    stat = "p50" if stat == "median" else stat
    if measure in TIMES and stat in STATS:
        return measure, stat
    hint = f"one of {', '.join(PLAIN)}; or {', '.join(TIMES)} with _{', _'.join(STATS)}"
    raise UsageError(f"{name!r} is not measured", where="--assert", hint=hint)


def _factor(measure: str, stat: str, unit: str) -> float:
    if stat or measure == "duration":
        if unit not in _TO_MS:
            raise ValueError(f"a time needs a unit, not {unit!r}")
        return _TO_MS[unit] if stat else _TO_MS[unit] / 1e3
    if measure == "error_rate" and unit == "%":
        return 0.01
    if unit not in {"", "/s"}:
        raise ValueError(f"unit {unit!r} does not fit")
    return 1.0


CLOSE = 1.05
"""The search ends when the lowest rate that failed is at most this much above the one kept."""
FEWEST = 10
"""Requests that a probe must send for its figures to say anything."""
MOST = 1e5  # requests per second


@dataclass(frozen=True)
class SearchResult:
    """The end of a search: rates are requests per second, None where there was none such.

    `kept` is the highest at which the limits held, `missed` the lowest at which they did not.
    """

    limits: tuple[str, ...]
    kept: float | None
    missed: float | None

    def __str__(self) -> str:
        limits = " and ".join(self.limits)
        if self.kept is None:
            return f"found no rate that meets {limits}"
        above = "" if self.missed is None else f" ({self.missed:g} does not)"
        return f"highest rate that meets {limits}: {self.kept:g} requests/s{above}"


def probe(start: Open, duration: float | None) -> Generator[Open, bool, None]:
    """Yield the loads to try, `start` first, and take whether the last one kept the limits.

    `duration` is how many seconds each takes, None where a number of requests limits it.
    """
    least = FEWEST / duration if duration else 0.001
    kept = missed = None
    rate = start.rate
    while least <= (rate := _plain(rate)) <= MOST:
        if (yield replace(start, rate=rate)):
            kept = rate
        else:
            missed = rate
        if missed is None:
            rate *= 2
        elif kept is None:
            rate /= 2
        elif missed / kept <= CLOSE:
            return
        else:
            rate = math.sqrt(kept * missed)


def found(limits: Sequence[str], tried: Sequence[tuple[float, bool]]) -> SearchResult:
    """Return what the tries tell: rates, and whether they kept the limits."""
    missed = min((rate for rate, good in tried if not good), default=None)
    kept = max((rate for rate, good in tried if good), default=None)
    return SearchResult(tuple(limits), kept, missed)


def _plain(rate: float) -> float:
    """Return the rate with three digits, as people write it."""
    return float(f"{rate:.3g}")
