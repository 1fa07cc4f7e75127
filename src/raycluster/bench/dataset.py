"""Prompt files: bytes -> prompts in file order, and a census of what was found and refused."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from raycluster.core.errors import UsageError
from raycluster.openai_client.files import AS_LINES, PromptFile
from raycluster.openai_client.lines import EVERY, RefusedLineError, parse_line
from raycluster.openai_client.prompts import Defaults, Prompt, to_prompt

_SHOWN = 5


@dataclass(frozen=True)
class DatasetSummary:
    """How many lines had which format, which were refused and why, which fields stay unsent.

    `digest` is over all requests, in their order: equal digests, equal load.
    """

    lines: int = 0
    formats: Mapping[str, int] = field(default_factory=dict)
    refused: tuple[tuple[int, str], ...] = ()
    unsent: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the census as plain values."""
        refused = [{"line": line, "reason": reason} for line, reason in self.refused]
        return {
            "lines": self.lines,
            "formats": dict(self.formats),
            "refused": refused,
            "unsent": dict(self.unsent),
            "digest": self.digest,
        }

    def notes(self) -> list[str]:
        """Return what a person should know, one short line each."""
        notes = [f"line {line} refused: {reason}" for line, reason in self.refused[:_SHOWN]]
        if len(self.refused) > _SHOWN:
            notes.append(f"... and {len(self.refused) - _SHOWN} more lines refused")
        if self.unsent:
            names = ", ".join(f"{name} ({count})" for name, count in self.unsent.items())
            notes.append(f"fields that are not request parameters, not sent: {names}")
        return notes


@dataclass(frozen=True)
class Dataset:
    """The prompts of a file, in its order, and its census."""

    prompts: tuple[Prompt, ...]
    census: DatasetSummary


def read_dataset(
    source: str,
    defaults: Defaults,
    *,
    stdin: BinaryIO,
    column: str = "",
    multi_turn: bool = False,
) -> Dataset:
    """Return the prompts in a file, or in standard input for `-`; raises UsageError."""
    where = "standard input" if source == "-" else source
    content = _read(source, stdin, where)
    name = "" if source == "-" else Path(source).name
    file = PromptFile(lambda: io.BytesIO(content), where=where, name=name, column=column)
    return _dataset(file, defaults, multi_turn=multi_turn)


def parse_dataset(
    content: bytes, defaults: Defaults, *, where: str, multi_turn: bool = False
) -> Dataset:
    """Return the prompts in the content of a file; raises UsageError when there is none.

    With `multi_turn` a conversation is a prompt for each of its answers; all first ones come
    first, then all second ones, so that each finds what was said before it answered.
    """
    file = PromptFile(lambda: io.BytesIO(content), where=where)
    return _dataset(file, defaults, multi_turn=multi_turn)


def _dataset(file: PromptFile, defaults: Defaults, *, multi_turn: bool) -> Dataset:
    turns: list[tuple[int, Prompt]] = []
    refused: list[tuple[int, str]] = []
    formats: Counter[str] = Counter()
    unsent: Counter[str] = Counter()
    for number, item in file.items():
        try:
            request = parse_line(item, EVERY, file.column)
        except RefusedLineError as error:
            refused.append((number, str(error)))
            continue
        formats["text" if file.kind == "text" else request.format] += 1
        unsent.update(request.unsent)
        each = request.turns() if multi_turn else [request]
        turns += enumerate(to_prompt(number, turn, defaults) for turn in each)
    prompts = [prompt for _, prompt in sorted(turns, key=itemgetter(0))]
    lines = sum(formats.values()) + len(refused)
    if not prompts:
        hint = f"{AS_LINES}; --column NAME for the column with the prompts"
        raise UsageError(_nothing(lines, refused), where=file.where, hint=hint)
    census = DatasetSummary(lines, dict(formats), tuple(refused), dict(unsent), _digest(prompts))
    return Dataset(tuple(prompts), census)


def _digest(prompts: list[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.path, prompt.model, prompt.body]).encode())
    return digest.hexdigest()[:16]


def _read(source: str, stdin: BinaryIO, where: str) -> bytes:
    try:
        return stdin.read() if source == "-" else Path(source).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"cannot read the prompts: {reason}",
            where=where,
            hint="name a readable file, or - for standard input",
        ) from error


def _nothing(lines: int, refused: list[tuple[int, str]]) -> str:
    if not lines:
        return "it contains no prompts"
    line, reason = refused[0]
    return f"none of its {lines} lines contains a prompt; line {line}: {reason}"
