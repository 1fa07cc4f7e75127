"""Prompt files: bytes -> prompts in file order, and a census of what was found and refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from raycluster.errors import UsageError
from raycluster.openai_wire.lines import RefusedError, parse_line, parse_object
from raycluster.openai_wire.prompts import Defaults, Prompt, to_prompt

_SHOWN = 5


@dataclass(frozen=True)
class Census:
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
    census: Census


def read_dataset(source: str, defaults: Defaults, *, stdin: BinaryIO) -> Dataset:
    """Return the prompts in a file, or in standard input for `-`; raises UsageError."""
    where = "standard input" if source == "-" else source
    content = _plain(_read(source, stdin, where), where)
    return parse_dataset(content, defaults, where=where)


def parse_dataset(content: bytes, defaults: Defaults, *, where: str) -> Dataset:
    """Return the prompts in the content of a file; raises UsageError when there is none."""
    prompts: list[Prompt] = []
    refused: list[tuple[int, str]] = []
    formats: Counter[str] = Counter()
    unsent: Counter[str] = Counter()
    for number, item in _items(content.removeprefix(b"\xef\xbb\xbf")):
        try:
            request = parse_line(item) if isinstance(item, bytes) else parse_object(item)
        except RefusedError as error:
            refused.append((number, str(error)))
            continue
        formats[request.format] += 1
        unsent.update(request.unsent)
        prompts.append(to_prompt(number, request, defaults))
    lines = len(prompts) + len(refused)
    if not prompts:
        raise UsageError(_nothing(lines, refused), where=where, hint='a line is {"prompt": "..."}')
    census = Census(lines, dict(formats), tuple(refused), dict(unsent), _digest(prompts))
    return Dataset(tuple(prompts), census)


def _digest(prompts: list[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.path, prompt.model, prompt.body]).encode())
    return digest.hexdigest()[:16]


def _items(content: bytes) -> Iterator[tuple[int, bytes | object]]:
    """Yield the file's items with their line, or their place in it where it is a JSON array."""
    if content.lstrip().startswith(b"["):
        try:
            whole = json.loads(content)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, list):
            yield from enumerate(whole, start=1)
            return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, line.strip(b"\r")


def _read(source: str, stdin: BinaryIO, where: str) -> bytes:
    try:
        return stdin.read() if source == "-" else Path(source).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"cannot read the prompts: {reason}",
            where=where,
            hint="name a readable file, or - for standard input for standard input",
        ) from error


def _plain(content: bytes, where: str) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"the gzip data is damaged: {error}",
            where=where,
            hint="check the file, or compress it again",
        ) from error


def _nothing(lines: int, refused: list[tuple[int, str]]) -> str:
    if not lines:
        return "it contains no prompts"
    line, reason = refused[0]
    return f"none of its {lines} lines contains a prompt; line {line}: {reason}"
