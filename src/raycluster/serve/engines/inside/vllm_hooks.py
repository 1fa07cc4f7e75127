"""What we add to vLLM's own classes: tokens by owner, turns of keys, an end for lost requests."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

from raycluster.serve.engines.inside.key import ASKED, NOBODY, OWNER, PRIORITY
from raycluster.serve.engines.inside.quotas import CLASS, Asked, Turns
from raycluster.serve.engines.inside.usage import Usage


class State(Protocol):
    """A sequence, as vLLM keeps it."""

    stats: Any
    detokenizer: Any
    is_prefilling: bool
    prompt_len: int
    num_cached_tokens: int
    lora_name: str | None
    request_id: str
    raycluster_owner: str
    raycluster_asked: Asked | None


class Request(Protocol):
    """What vLLM's core gets of a sequence; of two, the one with the lower priority goes first."""

    request_id: str
    sampling_params: Any
    priority: int


class Processor(Protocol):
    """What keeps vLLM's sequences."""

    request_states: dict[str, State]


def count_in_vllm(model: str, figures: Usage) -> None:
    """Have vLLM count what each of its sequences took when it lets go of it.

    That is what its own counters have of it, whether it has ended, was stopped or given up.
    """
    from vllm.v1.engine.output_processor import OutputProcessor

    class Counted(dict[str, State]):
        """The sequences that are not finished."""

        def pop(self, key: str, *default: State) -> State:  # type: ignore[override]
            state = super().pop(key, *default)
            if (owner := getattr(state, "raycluster_owner", "")) != "":
                with suppress(Exception):  # figures are no reason to stop serving
                    taken = _taken(state)
                    figures.took(state.lora_name or model, owner, *taken)
                    turns.give(key, taken[2])
                    if state.raycluster_asked:
                        state.raycluster_asked.took(taken[0] + taken[2], key)
            return state

    add = OutputProcessor.add_request
    turns = Turns()

    def add_request(self: Processor, request: Request, *args: object, **more: object) -> None:
        if type(self.request_states) is not Counted:
            self.request_states = Counted(self.request_states)
        add(self, request, *args, **more)
        state = self.request_states.get(request.request_id)
        if state is not None and not hasattr(state, "raycluster_owner"):
            state.raycluster_owner, state.raycluster_asked = OWNER.get(), ASKED.get()
            with suppress(Exception):
                _begins(turns, request, state)

    OutputProcessor.add_request = add_request


def _begins(turns: Turns, request: Request, state: State) -> None:
    """Give a sequence its turn, and have its tokens counted while it runs."""
    most = getattr(request.sampling_params, "max_tokens", 0) or 0
    owner, name, prompt = state.raycluster_owner, request.request_id, state.prompt_len
    turn = turns.take(owner, name, state, prompt, most)
    if owner != NOBODY or not request.priority:  # who has no key may have one of his own
        request.priority = PRIORITY.get() * CLASS + turn
    if state.raycluster_asked:
        state.raycluster_asked.begins(name, prompt, most, lambda: _tokens(state))


def _tokens(state: State) -> int:
    prompt, _, generated = _taken(state)
    return prompt + generated


class Frontend(Protocol):
    """What hands requests to vLLM's engine."""

    async def abort(self, request_id: str, internal: bool) -> None:
        """Take a request from the engine."""


def let_go_in_vllm() -> None:
    """Have vLLM abort a request whose client leaves while it is handed to the engine.

    vLLM aborts what it has handed over; a wait that is cancelled in between leaves the engine with
    a request that nobody reads, to its last token.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    add = AsyncLLM._add_request

    async def _add_request(self: Frontend, request: State, *args: object, **more: object) -> None:
        try:
            await add(self, request, *args, **more)
        except BaseException:
            await self.abort(request.request_id, internal=True)
            raise

    AsyncLLM._add_request = _add_request


def _taken(state: State) -> tuple[int, int, int]:
    """Return tokens of the prompt, those of them from a cache, and generated ones."""
    generated = 0
    if state.stats is not None:
        generated = state.stats.num_generation_tokens
    elif state.detokenizer is not None:
        generated = state.detokenizer.num_output_tokens()
    if state.is_prefilling:  # the prompt was not read to its end
        return 0, 0, generated
    return state.prompt_len, state.num_cached_tokens, generated
