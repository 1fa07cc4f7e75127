"""transformers, for hardware on which vLLM cannot start."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raycluster.serve.engines import ASGI, Count, EngineError
from raycluster.serve.engines.generation import Decode, Generator
from raycluster.serve.engines.inside.quotas import quotas
from raycluster.serve.engines.sampling import Foreign
from raycluster.serve.settings import ModelSettings

ARGUMENTS = frozenset(
    {"dtype", "revision", "tokenizer", "trust_remote_code", "max_model_len", "attn_implementation"}
    | {"max_num_seqs"}
)
"""Names of vLLM's that transformers can follow, and one of its own."""

DEFAULT_CONTEXT = 2048
DEFAULT_SEQS = 32
"""Requests that are generated side by side."""

logger = logging.getLogger("ray.serve")


class TransformersEngine:
    """transformers' `generate`, with OpenAI's API around it."""

    name = "transformers"
    own_tokens = 0
    figures = None

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._generator: Generator | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        found = {name: _version(name) for name in ("transformers", "torch")}
        return {name: number for name, number in found.items() if number}

    async def start(self, settings: ModelSettings, count: Count) -> ASGI:
        if settings.adapters:
            raise EngineError("adapters need vLLM: transformers serves only the base model")
        args = understood(settings)
        began = time.monotonic()
        from raycluster.serve.engines.openai import Api
        from raycluster.serve.engines.requests import Reader
        from raycluster.serve.engines.runners import make_runner

        upstream = await asyncio.to_thread(_import)
        self.phases["import"] = time.monotonic() - began

        began = time.monotonic()
        model, tokenizer = await asyncio.to_thread(_load, upstream, settings.source, args)
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
        longest = longest or DEFAULT_CONTEXT
        context = min(longest, int(args.get("max_model_len") or longest))
        seqs = int(args.get("max_num_seqs") or DEFAULT_SEQS)
        make = partial(make_runner, model, context, seqs)
        self._generator = await asyncio.to_thread(Generator, make, _decoding(tokenizer))
        self.phases["engine"] = time.monotonic() - began

        reader = Reader(
            tokenizer,
            context,
            vocabulary=max(model.config.get_text_config().vocab_size, len(tokenizer)),
            longest=max(map(len, tokenizer.get_vocab())),
            ends=_ends(model, tokenizer),
            defaults=_defaults(model.generation_config),
        )
        check = self._generator.check
        api = Api(settings.name, self._generator, reader, check, count)
        return api.application(*settings.aliases)

    async def check(self) -> None:
        if self._generator is not None:
            self._generator.check()

    async def quotas(self, others: bytes) -> bytes:
        return quotas().exchange(others)

    async def stop(self) -> None:
        if self._generator is not None:
            await asyncio.to_thread(self._generator.close)


def understood(settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments that transformers follows.

    As a fallback the others are left out with a warning; asked for by name, they raise EngineError.
    """
    given = {name.replace("-", "_"): value for name, value in settings.engine_args.items()}
    strange = sorted(given.keys() - ARGUMENTS)
    if strange and settings.engine == "transformers":
        close = difflib.get_close_matches(strange[0], sorted(ARGUMENTS), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(ARGUMENTS))}"
        raise EngineError(f"engine_args: transformers has no argument {strange[0]!r}: {hint}")
    if strange:
        logger.warning("raycluster: transformers ignores engine_args %s", ", ".join(strange))
    return {name: value for name, value in given.items() if name in ARGUMENTS}


def _import() -> Foreign:
    import transformers

    return transformers


def _load(transformers: Foreign, source: str, args: Mapping[str, Any]) -> tuple[Foreign, Foreign]:
    import torch

    common = {
        "trust_remote_code": args.get("trust_remote_code") is True,
        "revision": args.get("revision"),
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        args.get("tokenizer") or source, **common
    )
    several = torch.cuda.device_count() > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype=args.get("dtype", "auto"),
        attn_implementation=args.get("attn_implementation"),
        device_map="auto" if several else None,
        **common,
    )
    if not several:
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval(), tokenizer


def _decoding(tokenizer: Foreign) -> Decode:
    def decode(ids: list[int], skip_special: bool) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=skip_special))

    return decode


def _ends(model: Foreign, tokenizer: Foreign) -> tuple[int, ...]:
    """Return the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _defaults(config: Foreign) -> dict[str, float]:
    """Return the sampling parameters that the model's makers recommend, as vLLM takes them."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
