"""One generation with transformers: text that comes as it is made, stop strings, cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Foreign = Any
"""A value of torch or transformers, whose types are not here."""

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Ask:
    """What to generate after `prompt` (token ids); `options` are transformers' own names."""

    prompt: Sequence[int]
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Text that is new, tokens made so far, and why it ended ("" while it has not)."""

    text: str
    tokens: int
    finish: str = ""


class Detokenizer:
    """Turns tokens into text that may be shown: no half characters, no (beginning of a) stop."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(filter(None, stop))
        self._ids: list[int] = []
        self._shown = 0
        self.tokens = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Return what can be shown now."""
        self.tokens += 1
        self._ids.append(token)
        text = self._decode(self._ids)
        at = min((i for s in self._stop if (i := text.find(s, self._from(s))) >= 0), default=-1)
        if at >= 0:
            self.stopped = True
            return self._show(text, at)
        return self._show(text, len(text) - self._held_back(text))

    def rest(self) -> str:
        """Return what was held back, at the end."""
        text = "" if self.stopped else self._decode(self._ids)
        return self._show(text, len(text))

    def _from(self, stop: str) -> int:
        return max(0, self._shown - len(stop) + 1)

    def _show(self, text: str, end: int) -> str:
        new, self._shown = text[self._shown : end], max(self._shown, end)
        return new

    def _held_back(self, text: str) -> int:
        if text.endswith(REPLACEMENT):
            return len(text) - len(text.rstrip(REPLACEMENT))
        longest = max(map(len, self._stop), default=1) - 1
        ends = (
            n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)
        )
        return min(next(ends, 0), len(text))


class Generator:
    """Runs one generation after the other in a thread of its own."""

    def __init__(self, model: Foreign, tokenizer: Foreign) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self.broken: BaseException | None = None

    async def stream(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield the pieces, the last with its reason; closing the iterator ends the generation."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(item: Piece | BaseException) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        self._thread.submit(self._run, ask, emit, cancelled)
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            cancelled.set()

    def close(self) -> None:
        """Take no more work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(
        self, ask: Ask, emit: Callable[[Piece | BaseException], None], cancelled: threading.Event
    ) -> None:
        if cancelled.is_set():
            return
        try:
            emit(self._generate(ask, emit, cancelled))
        except Exception as error:  # handed to the request that waits for it
            if "CUDA error" in str(error):
                self.broken = error
            emit(error)

    def _generate(
        self, ask: Ask, emit: Callable[[Piece | BaseException], None], cancelled: threading.Event
    ) -> Piece:
        import torch
        from transformers import StoppingCriteriaList

        def decode(ids: list[int]) -> str:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))

        detokenizer = Detokenizer(decode, ask.stop)
        if ask.seed is not None:
            torch.manual_seed(ask.seed)
        prompt = torch.tensor([list(ask.prompt)], device=self._model.device)

        def done(ids: Foreign, _scores: Foreign, **_: object) -> Foreign:
            text = detokenizer.add(int(ids[0, -1]))
            if text:
                emit(Piece(text, detokenizer.tokens))
            end = detokenizer.stopped or cancelled.is_set()
            return torch.full((ids.shape[0],), end, device=ids.device, dtype=torch.bool)

        result = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=ask.max_tokens,
            stopping_criteria=StoppingCriteriaList([done]),
            **ask.options,
        )
        ended = detokenizer.stopped or int(result[0, -1]) in self._ends()
        return Piece(detokenizer.rest(), detokenizer.tokens, "stop" if ended else "length")

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}
