"""Prompts that nobody wrote, of exactly so many tokens; pure.

They are token ids, which vLLM's completions take as they are: no tokenizer is needed here, and the
length is what was asked for.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields

from raycluster.core.errors import UsageError
from raycluster.openai_client.lines import TOKEN_IDS

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
