"""Ways to run transformers' models: its continuous batching, or one generation after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from raycluster.serve.engines.generation import Ask, Deliver, Runner
from raycluster.serve.engines.sampling import Foreign, Sampler

logger = logging.getLogger("ray.serve")

PAGE = 32
"""Tokens of a block of keys and values."""

PREFILL = 512
"""Tokens of prompts in one step: what a request that has begun waits for at most."""

KV_BYTES = (1 << 30, 4 << 30)
"""Keys and values of all requests: on a CPU, as with vLLM's default there, and on a GPU."""

CLOSE_S = 5.0


class BrokenError(RuntimeError):
    """Nothing can be generated any more."""


def make_runner(model: Foreign, context: int, seqs: int, deliver: Deliver) -> Runner:
    """Return the best one for this model, started."""
    try:
        return Batching(model, context, seqs, deliver)
    except Exception as error:  # transformers raises what it likes for what it cannot batch
        logger.warning("raycluster: one request after the other: no batching: %s", error)
        return OneByOne(model, deliver)


class Batching:
    """transformers' continuous batching: up to `seqs` requests in each step of the model."""

    def __init__(self, model: Foreign, context: int, seqs: int, deliver: Deliver) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
        from transformers.generation.continuous_batching.cb_logits_processors import (
            ContinuousBatchingLogitsProcessorList,
        )

        if len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
            raise ValueError("the model lies on several devices")
        self._deliver = deliver
        self._manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1),
            ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=_blocks(model, context, seqs),
                max_batch_tokens=max(PREFILL, seqs),
                max_requests_per_batch=seqs,
                use_async_batching=False,  # a step depends on the tokens of the one before
                use_cuda_graph=False,
                auto_switch_to_flash=False,  # which may fetch kernels from the hub
            ),
        )
        chosen = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_choosing()]))
        chosen.tensors_required = 1
        self._manager.logit_processor = chosen
        self._manager.warmup()  # makes the cache, or raises
        self._manager.start()
        self._thread = threading.Thread(target=self._pass_on, name="tokens", daemon=True)
        self._thread.start()

    def add(self, number: str, ask: Ask, sampler: Sampler) -> None:
        self.check()
        taken = self._manager.add_request(
            ask.prompt,
            request_id=number,
            max_new_tokens=ask.max_tokens,
            streaming=True,
            eos_token_id=list(ask.all_ends) or [-1],
            sampler=sampler,
        )
        if taken is None:
            raise BrokenError("transformers takes no more requests")

    def cancel(self, number: str) -> None:
        self._manager.cancel_request(number)

    def check(self) -> None:
        if not self._manager.is_running():
            why = self._manager.background_thread_status.fatal_error
            raise BrokenError(f"transformers' batching has ended: {why}")

    def close(self) -> None:
        self._manager.stop(block=True, timeout=CLOSE_S, hard_stop=True)

    def _pass_on(self) -> None:
        with suppress(AttributeError):  # it forgets its thread when it is stopped
            for output in self._manager:
                self._pass_one(output)
        while output := self._manager.get_result(timeout=0.1):  # the last ones, with errors
            self._pass_one(output)

    def _pass_one(self, output: Foreign) -> None:
        failed = output.error is not None
        item = BrokenError(output.error) if failed else output.generated_tokens[-1]
        self._deliver(output.request_id, item)


def _choosing() -> Foreign:
    """Return what makes the likeliest token of each request the one that its sampler chooses."""
    import torch
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
    )

    class Choosing(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
        supported_kwargs = {"sampler": Sampler}  # noqa: RUF012
        ignored_kwargs = ()

        def __init__(self) -> None:
            self.samplers: list[Sampler] = []

        def fill_defaults(self, int32_tensor: Foreign) -> None:
            """Do nothing: the numbers are not used."""

        def prepare_tensor_args(self, requests_with_new_token: Sequence[Foreign]) -> Foreign:
            """Note whose tokens the next step makes, in their order."""
            asked = requests_with_new_token
            self.samplers = [each.state.logit_processor_kwargs["sampler"] for each in asked]
            return torch.zeros(len(asked), dtype=torch.int32)

        def __call__(self, scores: Foreign, _: Foreign) -> Foreign:
            return only_chosen(scores, self.samplers)

    return Choosing()


def only_chosen(scores: Foreign, samplers: Sequence[Sampler]) -> Foreign:
    """Return scores in whose rows only the token of the row's sampler is possible."""
    import torch

    chosen = []
    for row, sampler in zip(scores, samplers, strict=False):
        try:
            chosen.append(sampler.choose(row))
        except Exception as error:  # that of one request, told by it
            sampler.error = error
            chosen.append(0)
    alone = torch.full_like(scores, -float("inf"))
    alone[range(len(chosen)), chosen] = 0
    return alone


class OneByOne:
    """transformers' `generate` in a thread, for models that it cannot batch."""

    def __init__(self, model: Foreign, deliver: Deliver) -> None:
        self._model = model
        self._deliver = deliver
        self._wanted: set[str] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self._broken: BaseException | None = None

    def add(self, number: str, ask: Ask, sampler: Sampler) -> None:
        self._wanted.add(number)
        self._thread.submit(self._run, number, ask, sampler)

    def cancel(self, number: str) -> None:
        self._wanted.discard(number)

    def check(self) -> None:
        if self._broken is not None:
            raise BrokenError("the GPU is in error") from self._broken

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, number: str, ask: Ask, sampler: Sampler) -> None:
        if number not in self._wanted:
            return
        try:
            self._generate(number, ask, sampler)
        except Exception as error:  # handed to the request that waits for it
            if "CUDA error" in str(error):
                self._broken = error
            self._deliver(number, error)

    def _generate(self, number: str, ask: Ask, sampler: Sampler) -> None:
        import torch
        from transformers import GenerationConfig

        def done(ids: Foreign, _scores: Foreign, **_: object) -> Foreign:
            token = int(ids[0, -1])
            self._deliver(number, token)
            end = token in ask.all_ends or sampler.error is not None or number not in self._wanted
            return torch.full((ids.shape[0],), end, device=ids.device, dtype=torch.bool)

        prompt = torch.tensor([list(ask.prompt)], device=self._model.device)
        neutral: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(
                **neutral, max_new_tokens=ask.max_tokens, eos_token_id=list(ask.all_ends) or None
            ),
            logits_processor=[lambda _, scores: only_chosen(scores, [sampler])],
            stopping_criteria=[done],
        )


def _blocks(model: Foreign, context: int, seqs: int) -> int:
    """Return how large the cache is; raises ValueError where it has no room for one request."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    room: int = KV_BYTES[model.device.type == "cuda"] // of_token
    if room < context:
        raise ValueError(f"max_model_len = {context}; up to {room} are batched")
    return -(-min(context * seqs, room) // PAGE) + 2
