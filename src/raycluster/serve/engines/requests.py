"""Reads the bodies of OpenAI's completion requests into what shall be generated.

Fields, types and bounds are vLLM's. What this engine cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raycluster.serve.engines.generation import Ask
from raycluster.serve.engines.sampling import GREEDY, Foreign, Sampling

WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("logprobs", "echo", "watermarking", "use_beam_search"), (None, False)),
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids"), (None, False)),
    **dict.fromkeys(("return_prompt_text", "return_weight_versions"), (None, False)),
    "return_assistant_tokens_mask": (None, False),
    **dict.fromkeys(("prompt_logprobs", "truncate_prompt_tokens", "truncation_side"), (None,)),
    **dict.fromkeys(("prompt_embeds", "cache_salt", "structured_outputs"), (None,)),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), (None,)),
    **dict.fromkeys(("repetition_detection", "chat_template", "audio", "prediction"), (None,)),
    "web_search_options": (None,),
    **dict.fromkeys(("tools", "functions", "logprob_token_ids"), (None, [])),
    **dict.fromkeys(("tool_choice", "function_call"), (None, "none", "auto")),
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "vllm_xargs"), (None, {})),
    **dict.fromkeys(("media_io_kwargs", "mm_processor_kwargs"), (None, {})),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "stream_interval": (None, 1),
    "top_logprobs": (None, 0),
    **dict.fromkeys(("priority", "routed_experts_prompt_start"), (None, 0)),
    "thinking_token_budget": (None, -1),
    "spaces_between_special_tokens": (None, True),
}
"""What this engine does not have, and the values that ask for nothing of it."""

MOST_CHOICES = 1024
USUAL_CHARACTERS = 8
"""A token seldom has more: longer texts are not turned into tokens as a whole to be counted."""

LARGEST_BODY = 32 << 20
SMALLEST_LIMIT = 1 << 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Chance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Text64 = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]


class BadRequestError(Exception):
    """The client's mistake, as OpenAI's API tells it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Body(BaseModel):
    """What both endpoints have in common; what is not here is in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stop_token_ids: list[Token] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    request_id: Text64 | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Chance | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    length_penalty: Finite = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logit_bias: dict[Token, Finite] | None = None
    allowed_token_ids: Annotated[list[Token], Field(min_length=1)] | None = None
    bad_words: list[Text] | None = None


class CompletionBody(Body):
    """That of /v1/completions."""

    prompt: Any = None


class ChatBody(Body):
    """That of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )


SomeBody = TypeVar("SomeBody", bound=Body)

OF_TEMPLATES = (
    *("chat_template", "tokenize", "conversation", "tools", "padding", "truncation"),
    *("max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    "return_assistant_tokens_mask",
)
"""Arguments of transformers' that are not the template's own."""


@dataclass(frozen=True)
class Asked:
    """A request: what to generate, a choice of the answer each, and how to answer."""

    asks: tuple[Ask, ...]
    prompt_tokens: int
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Reader:
    """Reads requests for one model, whose context is `context` tokens long.

    There are `vocabulary` tokens, of which the longest has `longest` characters, and `ends` end a
    text; `defaults` are the model's own sampling parameters.
    """

    tokenizer: Foreign
    context: int
    vocabulary: int
    longest: int
    ends: tuple[int, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def largest_body(self) -> int:
        """The bytes that a request may have."""
        return min(LARGEST_BODY, SMALLEST_LIMIT + 16 * self.context * self.longest)

    def completion(self, body: bytes) -> Asked:
        """Read the body of /v1/completions; raises BadRequestError."""
        read = parsed(CompletionBody, body)
        special = read.add_special_tokens is not False
        prompts = [self._prompt(prompt, special=special) for prompt in _prompts(read.prompt)]
        return self._asked(read, prompts, "max_tokens", usual=16)

    def chat(self, body: bytes) -> Asked:
        """Read the body of /v1/chat/completions; raises BadRequestError."""
        read = parsed(ChatBody, body)
        ids = self._ids(self._filled(read), special=bool(read.add_special_tokens))
        name = "max_tokens" if read.max_completion_tokens is None else "max_completion_tokens"
        return self._asked(read, [ids], name, usual=self.context)

    def _prompt(self, prompt: object, *, special: bool) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._ids(prompt, special=special)
        ids = prompt if isinstance(prompt, list) else []
        if not all(type(token) is int for token in ids):
            raise _not_a_prompt()
        self._in_vocabulary("prompt", ids)
        return ids

    def _ids(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens; one that is far too long is refused without counting them."""
        self._not_longer(len(text))
        few = self.context * USUAL_CHARACTERS
        if len(text) > few:
            least = len(self._tokens(text[:few], special=special)) - self.longest
            if least > self.context:
                raise self._too_long(f"more than {least} tokens")
        return self._tokens(text, special=special)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return found

    def _not_longer(self, characters: int) -> None:
        if characters > self.context * self.longest:
            raise self._too_long(f"{characters} characters")

    def _too_long(self, what: str) -> BadRequestError:
        return BadRequestError(
            f"This model's maximum context length is {self.context} tokens. However, your prompt "
            f"has {what}. Please shorten it."
        )

    def _filled(self, read: ChatBody) -> str:
        """Return the chat template's text."""
        messages = [_plain(message) for message in read.messages]
        self._not_longer(sum(len(str(message.get("content") or "")) for message in messages))
        if read.continue_final_message and read.add_generation_prompt:
            raise BadRequestError(
                "continue_final_message and add_generation_prompt exclude each other",
                "continue_final_message",
            )
        given = dict(read.chat_template_kwargs or {})
        if name := next((name for name in OF_TEMPLATES if name in given), None):
            raise BadRequestError(f"{name} is no template's own argument", "chat_template_kwargs")
        if effort := read.reasoning_effort:
            given = {"enable_thinking": effort != "none", "reasoning_effort": effort, **given}
        own = {
            "add_generation_prompt": read.add_generation_prompt,
            "continue_final_message": read.continue_final_message,
            "documents": read.documents,
        }
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **{**own, **given})
        except Exception as error:  # the model's template raises what it likes
            raise BadRequestError(f"the chat template refuses the messages: {error}") from error
        return str(text)

    def _asked(
        self, read: Body, prompts: Sequence[Sequence[int]], name: str, *, usual: int
    ) -> Asked:
        wanted: int | None = getattr(read, name)
        for ids in prompts:
            if not 0 < len(ids) < self.context:
                raise BadRequestError(
                    f"the prompt has {len(ids)} tokens; between 1 and {self.context - 1} are"
                    " possible",
                    None if ids else "prompt",
                )
        if wanted is not None and wanted > self.context:
            raise BadRequestError(
                f"{name}={wanted} cannot be greater than max_model_len={self.context}", name
            )
        many = read.n or 1
        if many * len(prompts) > MOST_CHOICES:
            raise BadRequestError(f"more than {MOST_CHOICES} choices are asked for", "n")
        sampling = self._sampling(read)
        if many > 1 and sampling.temperature < GREEDY:
            raise BadRequestError("n must be 1 with temperature 0: all choices are the same", "n")
        stop_ids = read.stop_token_ids or []
        self._in_vocabulary("stop_token_ids", stop_ids)
        ask = Ask(
            prompt=(),
            max_tokens=wanted or usual,
            min_tokens=read.min_tokens,
            ends=() if read.ignore_eos else self.ends,
            stop_ids=tuple(dict.fromkeys(stop_ids)),
            stop=_stop(read.stop),
            include_stop=read.include_stop_str_in_output,
            skip_special=read.skip_special_tokens,
            sampling=sampling,
        )
        options = read.stream_options or StreamOptions()
        if options.model_fields_set and not read.stream:
            raise BadRequestError("stream_options need stream = true", "stream_options")
        return Asked(
            tuple(self._choices(ask, prompts, many)),
            prompt_tokens=sum(map(len, prompts)),
            stream=bool(read.stream),
            include_usage=bool(options.include_usage),
            continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
            model=read.model,
            request_id=read.request_id,
        )

    def _choices(self, ask: Ask, prompts: Sequence[Sequence[int]], many: int) -> Iterable[Ask]:
        for ids in prompts:
            tokens = min(self.context - len(ids), ask.max_tokens)
            if ask.min_tokens > tokens:
                raise BadRequestError(
                    f"min_tokens must be at most {tokens}, the tokens that there can be",
                    "min_tokens",
                )
            for number in range(many):
                sampling = ask.sampling
                if sampling.seed is not None:
                    sampling = replace(sampling, seed=(sampling.seed + number) % 2**63)
                yield replace(ask, prompt=ids, max_tokens=tokens, sampling=sampling)

    def _sampling(self, read: Body) -> Sampling:
        self._in_vocabulary("logit_bias", read.logit_bias or ())
        self._in_vocabulary("allowed_token_ids", read.allowed_token_ids or ())
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: getattr(read, name) for name in names}
        chosen = {name: value for name, value in given.items() if value is not None}
        return Sampling(
            **{**self.defaults, **chosen},
            frequency_penalty=read.frequency_penalty or 0.0,
            presence_penalty=read.presence_penalty or 0.0,
            seed=None if read.seed == -1 else read.seed,
            bias={t: min(100.0, max(-100.0, b)) for t, b in (read.logit_bias or {}).items()},
            allowed=tuple(dict.fromkeys(read.allowed_token_ids or ())),
            bad_words=tuple(dict.fromkeys(self._bad_words(read.bad_words or ()))),
        )

    def _bad_words(self, words: Iterable[str]) -> Iterable[tuple[int, ...]]:
        """Return their tokens, as they begin a text and as they follow a space."""
        for word in dict.fromkeys(words):
            if not word.strip():
                raise BadRequestError("bad_words must not be empty", "bad_words")
            for text in (word.lstrip(), f" {word.lstrip()}"):
                yield tuple(self._ids(text, special=False))

    def _in_vocabulary(self, name: str, tokens: Iterable[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise BadRequestError(
                    f"{name}: there are tokens from 0 to {self.vocabulary - 1}", name
                )


def parsed(kind: type[SomeBody], body: bytes) -> SomeBody:
    """Return the fields of a body; raises BadRequestError."""
    try:
        read = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        param = str(first["loc"][0]) if first["loc"] else None
        text = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
        raise BadRequestError(text, param) from None
    for name, value in (read.model_extra or {}).items():
        if name in WITHOUT_EFFECT and not any(_same(value, no) for no in WITHOUT_EFFECT[name]):
            raise BadRequestError(f"{name} is not supported by the transformers engine", name)
    return read


def _same(value: object, other: object) -> bool:
    return type(value) is type(other) and value == other


def _prompts(prompt: object) -> list[object]:
    """Return the prompts, each a text or a list of tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt or len({type(each) for each in prompt}) > 1:
        raise _not_a_prompt()
    if type(prompt[0]) is int:
        return [prompt]
    if not isinstance(prompt[0], str | list) or len(prompt) > MOST_CHOICES:
        raise _not_a_prompt()
    return prompt


def _not_a_prompt() -> BadRequestError:
    return BadRequestError(
        f"prompt must be a text, a list of token ids, or a list of up to {MOST_CHOICES} of either",
        "prompt",
    )


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if not all(stops):
        raise BadRequestError("stop cannot contain an empty string", "stop")
    return tuple(stops)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its parts joined, for templates that know only text."""
    if not isinstance(message.get("role"), str):
        raise BadRequestError("a message must be an object with a role", "messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, list) or not all(map(_is_text, content)):
        raise BadRequestError(
            "only text content is supported by the transformers engine", "messages"
        )
    return {**message, "content": "".join(part["text"] for part in content)}


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )
