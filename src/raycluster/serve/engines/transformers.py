"""transformers, for hardware on which vLLM cannot start: one request after the other."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raycluster.serve.engines import ASGI, Count, EngineError
from raycluster.serve.engines.generation import Foreign, Generator
from raycluster.serve.settings import ModelSettings

ARGUMENTS = frozenset(
    {"dtype", "revision", "tokenizer", "trust_remote_code", "max_model_len", "attn_implementation"}
)
"""Names of vLLM's that transformers can follow, and one of its own."""

DEFAULT_CONTEXT = 2048

logger = logging.getLogger("ray.serve")


class TransformersEngine:
    """transformers' `generate`, with OpenAI's API around it."""

    name = "transformers"
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
            raise EngineError("adapters need vLLM: transformers serves the model alone")
        args = understood(settings)
        began = time.monotonic()
        from raycluster.serve.engines.openai import Api
        from raycluster.serve.engines.requests import Reader

        upstream = await asyncio.to_thread(_import)
        self.phases["import"] = time.monotonic() - began

        began = time.monotonic()
        model, tokenizer = await asyncio.to_thread(_load, upstream, settings.source, args)
        self._generator = Generator(model, tokenizer)
        self.phases["engine"] = time.monotonic() - began

        longest = getattr(model.config, "max_position_embeddings", DEFAULT_CONTEXT)
        context = min(longest, int(args.get("max_model_len") or longest))
        reader = Reader(tokenizer, context)
        return Api(settings.name, self._generator, reader, self._ok, count).application(
            *settings.aliases
        )

    async def check(self) -> None:
        self._ok()

    async def stop(self) -> None:
        if self._generator is not None:
            self._generator.close()

    def _ok(self) -> None:
        if self._generator is not None and self._generator.broken is not None:
            raise RuntimeError("the GPU is in error") from self._generator.broken


def understood(settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments that transformers follows.

    As a fallback the others are left out with a warning; asked for by name, they raise EngineError.
    """
    given = {name.replace("-", "_"): value for name, value in settings.engine_args.items()}
    strange = sorted(given.keys() - ARGUMENTS)
    if strange and settings.engine == "transformers":
        close = difflib.get_close_matches(strange[0], sorted(ARGUMENTS), n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(ARGUMENTS))}"
        )
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
