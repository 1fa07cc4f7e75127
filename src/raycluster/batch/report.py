"""A run in words and as JSON; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
_WINDOW_SECONDS = 30.0


@dataclass(frozen=True)
class BatchSummary:
    """The state of the output after a run, and what the run did. Times in seconds.

    `lines` are those of the input that count; `ok` and `failed` those of them with a result.
    """

    input: str
    output: str
    base_url: str
    lines: int
    before: int
    ok: int
    failed: int
    seconds: float
    sent: int
    retried: Mapping[str, int]
    interrupted: bool = False

    @property
    def left(self) -> int:
        """Lines without a result."""
        return self.lines - self.ok - self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its `schema` changes when a name does."""
        new = self.ok + self.failed - self.before
        rate = round(new / self.seconds, 3) if self.seconds > 0 else None
        facts = asdict(self) | {"retried": dict(self.retried)}
        return {"schema": SCHEMA, "kind": "batch", **facts, "left": self.left, "rate": rate}

    def text(self) -> str:
        """Return a few lines for a person."""
        new = self.ok + self.failed - self.before
        rate = f", {new / self.seconds:.1f} lines/s" if self.seconds > 0 else ""
        lines = [
            f"{self.ok:,} of {self.lines:,} lines answered, {self.failed:,} failed, "
            f"{self.left:,} left -> {self.output}",
            f"this run: {new:,} lines in {duration(self.seconds)}{rate}; "
            f"{self.before:,} were already done",
        ]
        if self.retried:
            reasons = ", ".join(f"{name} {count:,}" for name, count in self.retried.items())
            lines.append(f"retried: {reasons}")
        return "\n".join(lines)


@dataclass
class ProgressLine:
    """Turns counts into a line with rate and time left; `begin` results were there before."""

    lines: int
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def line(
        self, now: float, ok: int, failed: int, limit: int | None = None, trouble: str = ""
    ) -> str:
        """Return the line for this moment; `now` is on a monotonic clock."""
        done = ok + failed
        self._recent.append((now, done))
        while now - self._recent[0][0] > _WINDOW_SECONDS:
            self._recent.popleft()
        then, before = self._recent[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        left = f", {duration((self.lines - done) / rate)} left" if rate > 0 else ""
        share = f"{done:,} of {self.lines:,} lines ({done / self.lines:.0%})"
        wait = f"; waiting: {trouble}" if trouble and not rate else ""
        at_once = "" if limit is None else f", concurrency {limit}"
        return f"{share}, {failed:,} failed, {rate:.1f}/s{at_once}{left}{wait}"


def duration(seconds: float) -> str:
    """Return a time in the two units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
