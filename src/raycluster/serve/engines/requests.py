"""Reads the bodies of OpenAI's completion requests into what transformers should generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycluster.serve.engines.generation import Ask, Foreign

UNSUPPORTED = (
    *("logprobs", "top_logprobs", "prompt_logprobs", "logit_bias", "best_of", "echo", "suffix"),
    *("tools", "functions", "response_format", "structured_outputs", "audio"),
)
"""Refused when asked for, rather than answered wrongly."""


class BadRequestError(Exception):
    """The client's mistake, as OpenAI's API tells it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request: what to generate and how to answer."""

    ask: Ask
    stream: bool
    include_usage: bool


class Reader:
    """Reads requests for one model, whose context is `context` tokens long."""

    def __init__(self, tokenizer: Foreign, context: int) -> None:
        self._tokenizer = tokenizer
        self.context = context

    def completion(self, body: Mapping[str, Any]) -> Asked:
        """Read the body of /v1/completions; raises BadRequestError."""
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            ids = self._tokenizer(prompt)["input_ids"]
        elif isinstance(prompt, list) and prompt and all(type(x) is int for x in prompt):
            ids = prompt
        else:
            raise BadRequestError("prompt must be one string or one list of tokens", "prompt")
        return self._asked(body, ids, default_tokens=16)

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """Read the body of /v1/chat/completions; raises BadRequestError."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequestError("messages must be a list of messages", "messages")
        try:
            text = self._tokenizer.apply_chat_template(
                [_plain(message) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                **(body.get("chat_template_kwargs") or {}),
            )
        except BadRequestError:
            raise
        except Exception as error:  # the model's template raises what it likes
            raise BadRequestError(f"the chat template rejects the messages: {error}") from error
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._asked(body, ids, default_tokens=self.context)

    def _asked(self, body: Mapping[str, Any], ids: list[int], *, default_tokens: int) -> Asked:
        for name in UNSUPPORTED:
            if body.get(name):
                raise BadRequestError(f"{name} is not supported by the transformers engine", name)
        if body.get("n") not in (None, 1):
            raise BadRequestError("n must be 1 with the transformers engine", "n")
        room = self.context - len(ids)
        if not ids or room < 1:
            raise BadRequestError(
                f"the prompt has {len(ids)} tokens; between 1 and {self.context - 1} are allowed"
            )
        wanted = _number(body, "max_completion_tokens", 1, 10**9, int)
        wanted = _number(body, "max_tokens", 1, 10**9, int) if wanted is None else wanted
        tokens = int(min(room, default_tokens if wanted is None else wanted))
        ask = Ask(ids, tokens, _stop(body), body.get("seed"), _options(body, tokens))
        usage = (body.get("stream_options") or {}).get("include_usage", False)
        return Asked(ask, stream=bool(body.get("stream")), include_usage=bool(usage))


def _options(body: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    temperature = _number(body, "temperature", 0, 2)
    options: dict[str, Any] = {
        "top_k": _number(body, "top_k", 0, 10**9, int),
        "top_p": _number(body, "top_p", 0, 1),
        "repetition_penalty": _number(body, "repetition_penalty", 0, 2),
        "min_new_tokens": tokens
        if body.get("ignore_eos")
        else _number(body, "min_tokens", 0, tokens),
    }
    if temperature == 0:
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        kept = ("repetition_penalty", "min_new_tokens")
        return greedy | {k: options[k] for k in kept if options[k] is not None}
    options["temperature"] = temperature
    return {"do_sample": True} | {k: v for k, v in options.items() if v is not None}


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise BadRequestError("stop must be a string or a list of strings", "stop")
    return tuple(stops)


def _number(
    body: Mapping[str, Any], name: str, low: float, high: float, kind: type = float
) -> float | None:
    value: Any = body.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and value != int(value)) or not low <= value <= high:
        raise BadRequestError(f"{name} must be a number between {low} and {high}", name)
    return kind(value)  # type: ignore[no-any-return]


def _plain(message: object) -> dict[str, Any]:
    """Return a message with its parts joined, for templates that know only text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequestError("a message must be an object with a role", "messages")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise BadRequestError(
            "only text content is supported by the transformers engine", "messages"
        )
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
