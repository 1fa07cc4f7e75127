"""What is in an input file, known before anything is sent."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path

from raycluster.batch.job import id_of
from raycluster.batch.source import check_no_array, items, raw_lines, strip
from raycluster.contracts import Tell
from raycluster.errors import UsageError

_SHOWN = 5
_TOLD_EVERY = 1_000_000
_BUCKETS = 256


@dataclass(frozen=True)
class Census:
    """`digest` is over every byte; `total` counts the lines that hold something.

    `lines` of them are to be sent, up to line number `last`.
    """

    digest: str
    total: int
    lines: int
    last: int


@dataclass(frozen=True)
class Refusals:
    """How many lines are no request, and the first of them with the reason."""

    count: int = 0
    first: tuple[tuple[int, str], ...] = ()

    def notes(self) -> list[str]:
        """Return one short line each, for a person."""
        notes = [f"line {line} is not a request: {reason}" for line, reason in self.first]
        if self.count > len(self.first):
            notes.append(f"... and {self.count - len(self.first)} more lines")
        return notes


def take_census(path: Path, limit: int | None = None) -> Census:
    """Read the whole file; only the first `limit` lines are to be sent. Raises UsageError."""
    digest = hashlib.sha256()
    total = last = 0
    for number, line in raw_lines(path):
        digest.update(line)
        if strip(number, line):
            total += 1
            last = number if limit is None or total <= limit else last
    if not total:
        raise UsageError("has no lines", where=str(path), hint='a line is {"prompt": "..."}')
    return Census(digest.hexdigest()[:12], total, min(total, limit or total), last)


def check_lines(path: Path, tell: Tell) -> Refusals:
    """Read all lines as requests, and say which are none.

    Raises UsageError for a JSON array, and for a custom_id that two lines have. Holds 8 bytes per
    line in memory meanwhile.
    """
    seen = [array("Q") for _ in range(_BUCKETS)]
    count = 0
    first: list[tuple[int, str]] = []
    for checked, (number, item) in enumerate(items(path)):
        if not checked:
            check_no_array(item, path)
        custom_id, reason = id_of(number, item)
        if reason:
            count += 1
            if len(first) < _SHOWN:
                first.append((number, reason))
        key = _key(custom_id)
        seen[key % _BUCKETS].append(key)
        if checked and checked % _TOLD_EVERY == 0:
            tell(f"{checked:,} lines checked")
    twice = {key for bucket in seen for key in _repeated(bucket)}
    if twice:
        raise _duplicates(path, twice)
    return Refusals(count, tuple(first))


def _key(custom_id: str) -> int:
    content = custom_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _repeated(bucket: array[int]) -> set[int]:
    if len(set(bucket)) == len(bucket):
        return set()
    seen: set[int] = set()
    return {key for key in bucket if key in seen or seen.add(key)}  # type: ignore[func-returns-value]


def _duplicates(path: Path, twice: set[int]) -> UsageError:
    """Return the error that names the lines; read again, for it holds only what is shown."""
    lines: dict[str, list[int]] = {}
    for number, item in items(path):
        custom_id, _ = id_of(number, item)
        if _key(custom_id) in twice and (custom_id in lines or len(lines) < _SHOWN):
            lines.setdefault(custom_id, []).append(number)
    named = "; ".join(
        f"{name!r} on lines {', '.join(map(str, numbers[:_SHOWN]))}"
        for name, numbers in lines.items()
    )
    return UsageError(
        f"{len(twice)} custom_id{'s' * (len(twice) > 1)} more than once: {named}",
        where=str(path),
        hint="results are matched by custom_id: give each line its own, or omit it",
    )
