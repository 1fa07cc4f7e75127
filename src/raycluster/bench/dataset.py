"""Prompts of files, in file order with a census of what was found and refused, or made up."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from raycluster.core.errors import UsageError
from raycluster.openai_client.files import AS_LINES, PromptFile
from raycluster.openai_client.lines import EVERY, TOKEN_IDS, RefusedLineError, parse_line
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
        return asdict(self) | {"refused": refused}

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


LARGEST = 10_000_000
"""Tokens in all: the prompts are made before the first is sent."""


@dataclass(frozen=True)
class Synthetic:
    """`count` prompts of `prompt` tokens, of which the first `prefix` are the same in all of them.

    Each is answered with exactly `output` tokens.
    """

    prompt: int = 512
    output: int = 128
    prefix: int = 0
    count: int = 100


def parse_synthetic(text: str) -> Synthetic:
    """Return what `prompt=512,output=128` asks for. Raises UsageError."""
    known = [field.name for field in fields(Synthetic)]
    values: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known or name in values or not number.isascii() or not number.isdigit():
            raise UsageError(
                f"{part.strip()!r} is not valid",
                where="--synthetic",
                hint=f"prompt=512,output=128; also {', '.join(known[2:])}, each once",
            )
        values[name] = int(number)
    made = Synthetic(**values)
    if min(made.prompt, made.output, made.count) < 1 or made.prefix > made.prompt:
        raise UsageError(
            "prompt, output and count are at least 1, and prefix is at most prompt",
            where="--synthetic",
            hint="prompt=512,output=128,prefix=256",
        )
    if made.prompt * made.count > LARGEST:
        raise UsageError(
            f"{made.prompt * made.count:,} tokens are too many to generate in advance",
            where="--synthetic",
            hint=f"at most {LARGEST:,}: use fewer prompts, and repeat them with --num-requests",
        )
    return made


def lines_of(wanted: Synthetic, seed: int) -> bytes:
    """Return the prompts as the lines of a prompts file; the same seed gives the same ones."""
    chance = random.Random(seed)  # noqa: S311  # not for secrets
    prefix = chance.choices(TOKEN_IDS, k=wanted.prefix)
    lines = [
        {
            "prompt": prefix + chance.choices(TOKEN_IDS, k=wanted.prompt - wanted.prefix),
            "max_tokens": wanted.output,
            "ignore_eos": True,
        }
        for _ in range(wanted.count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
