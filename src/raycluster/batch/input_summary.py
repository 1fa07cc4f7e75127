"""What is in an input file, known before anything is sent."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

from raycluster.batch.job import id_of
from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Tell
from raycluster.openai_client.files import PromptFile

_SHOWN = 5
_TOLD_EVERY = 1_000_000
_BUCKETS = 256


@dataclass(frozen=True)
class InputSummary:
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


def summarize(file: PromptFile, limit: int | None = None) -> InputSummary:
    """Read the whole file; only the first `limit` lines are to be sent. Raises UsageError."""
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    total = last = 0
    for number, _ in file.items():
        total += 1
        last = number if limit is None or total <= limit else last
    if not total:
        raise UsageError("has no lines", where=file.where, hint='a line is {"prompt": "..."}')
    return InputSummary(digest.hexdigest()[:12], total, min(total, limit or total), last)


def check_lines(file: PromptFile, tell: Tell) -> Refusals:
    """Read all lines as requests, and say which are none.

    Raises UsageError for an id that is none, and for one that two lines have. Holds 8 bytes per
    line in memory meanwhile.
    """
    seen = [array("Q") for _ in range(_BUCKETS)]
    count = 0
    first: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    bad_count = 0
    for checked, (number, item) in enumerate(file.items()):
        named = id_of(number, item, file.column)
        if named.refused:
            count += 1
            if len(first) < _SHOWN:
                first.append((number, named.refused))
        if named.bad_id:
            bad_count += 1
            if len(bad) < _SHOWN:
                bad.append((number, named.bad_id))
        key = _key(named.id)
        seen[key % _BUCKETS].append(key)
        if checked and checked % _TOLD_EVERY == 0:
            tell(f"{checked:,} lines checked")
    if bad:
        raise _bad_ids(file.where, bad, bad_count)
    twice = {key for bucket in seen for key in _repeated(bucket)}
    if twice:
        raise _duplicates(file, twice)
    return Refusals(count, tuple(first))


def _bad_ids(where: str, first: list[tuple[int, str]], count: int) -> UsageError:
    notes = [f"line {line}: {reason}" for line, reason in first]
    if count > len(first):
        notes.append(f"... and {count - len(first)} more lines")
    return UsageError(
        "\n".join(notes),
        where=where,
        hint='results are matched by it: write it in quotes ("1.0"), or remove it',
    )


def _key(custom_id: str) -> int:
    content = custom_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _repeated(bucket: array[int]) -> set[int]:
    if len(set(bucket)) == len(bucket):
        return set()
    seen: set[int] = set()
    return {key for key in bucket if key in seen or seen.add(key)}  # type: ignore[func-returns-value]


def _duplicates(file: PromptFile, twice: set[int]) -> UsageError:
    """Return the error that names the lines; read again, for it holds only what is shown."""
    lines: dict[str, list[int]] = {}
    for number, item in file.items():
        custom_id = id_of(number, item, file.column).id
        if _key(custom_id) in twice and (custom_id in lines or len(lines) < _SHOWN):
            lines.setdefault(custom_id, []).append(number)
    named = "; ".join(
        f"{name!r} on lines {', '.join(map(str, numbers[:_SHOWN]))}"
        for name, numbers in lines.items()
    )
    return UsageError(
        f"{len(twice)} custom_id{'s' * (len(twice) > 1)} more than once: {named}",
        where=file.where,
        hint="results are matched by custom_id: give each line its own, or omit it",
    )
