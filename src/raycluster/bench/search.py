"""The highest rate that meets the limits: doubles or halves, then closes in; pure."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raycluster.bench.schedule import Open

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

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"limits": list(self.limits), "kept": self.kept, "missed": self.missed}


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
