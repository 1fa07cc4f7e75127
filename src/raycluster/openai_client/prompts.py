"""From an understood line to the request that it stands for; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycluster.openai_client.lines import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    GENERATING,
    LIMITS,
    MESSAGES,
    RESPONSES,
    Request,
)

ENDPOINTS = ("chat", "completions", "responses", "messages", "embeddings")
"""Where bare prompts may go."""


@dataclass(frozen=True)
class Prompt:
    """One request to send, from line `line` (1-based) of the file.

    `at` is when a recorded one was sent, in seconds from some moment.
    """

    id: str
    line: int
    path: str
    body: Mapping[str, Any]
    model: str = ""
    at: float | None = None


@dataclass(frozen=True)
class Defaults:
    """How lines become requests where they do not say so themselves.

    `endpoint` is where bare prompts go: chat, completions, responses, messages or embeddings;
    `max_tokens` is the limit of lines that have none (None: the server's own); `ignore_eos` makes
    vLLM generate up to the limit.
    """

    endpoint: str = "chat"
    max_tokens: int | None = 256
    ignore_eos: bool = False


def to_prompt(number: int, request: Request, defaults: Defaults) -> Prompt:
    """Return what line `number` asks for."""
    body = dict(request.body)
    path = request.path
    if not path:
        path, body = _bare(body, defaults.endpoint)
    model = body.pop("model", "")
    if path in GENERATING:
        limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
        if defaults.max_tokens is not None and not any(name in body for name in LIMITS):
            body[limit] = defaults.max_tokens
        if defaults.ignore_eos:
            body["ignore_eos"] = True
    model = model if isinstance(model, str) else ""
    return Prompt(request.id or f"line-{number}", number, path, body, model, request.at)


def _bare(body: dict[str, Any], endpoint: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a prompt without an endpoint of its own."""
    if endpoint == "embeddings":
        return EMBEDDINGS, {"input": body.pop("prompt"), **body}
    if endpoint == "completions" or not isinstance(body["prompt"], str):
        return COMPLETIONS, body
    text = body.pop("prompt")
    if endpoint == "responses":
        if "max_tokens" in body:
            body["max_output_tokens"] = body.pop("max_tokens")
        return RESPONSES, {"input": text, **body}
    path = MESSAGES if endpoint == "messages" else CHAT
    return path, {"messages": [{"role": "user", "content": text}], **body}
