"""The formats of one line of a prompt file; pure."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

GENERATING = (CHAT, COMPLETIONS)
EVERY = (*GENERATING, EMBEDDINGS)

# fmt: off
PARAMETERS = frozenset(
    {
        "model", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p",
        "top_k", "min_p", "seed", "stop", "stop_token_ids", "n", "best_of", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs",
        "echo", "suffix", "user", "ignore_eos", "add_special_tokens", "response_format",
        "structured_outputs", "tools", "tool_choice", "priority", "cache_salt",
        "chat_template_kwargs", "reasoning_effort",
    }
)
# fmt: on
"""What a line with a bare prompt may say about its request; its other fields are data about it."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"} | {
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}


TOKEN_IDS = range(1000, 10_000)
"""Ordinary tokens in today's models: below are special ones, above end small vocabularies."""

BLOCK = 512
"""Tokens that one of Mooncake's hashes stands for."""

_LENGTHS = ("output_tokens", "output_length")


class RefusedError(Exception):
    """The line is not a prompt; the message says why."""


@dataclass(frozen=True)
class Request:
    """A line, understood. Without `path` the body holds a bare `prompt`.

    `at` is the line's timestamp in seconds, where it has one.
    """

    format: str
    body: Mapping[str, Any]
    path: str = ""
    id: str = ""
    unsent: tuple[str, ...] = ()
    at: float | None = None


def parse_line(line: bytes, urls: tuple[str, ...] = GENERATING) -> Request:
    """Return the request in one line, for one of the `urls`; raises RefusedError."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"not UTF-8 at byte {error.start + 1}") from error
    start = text.lstrip()[:1]
    if start in {"{", '"', "["}:
        try:
            return parse_object(json.loads(text), urls)
        except (ValueError, RecursionError) as error:
            if start == "{":
                raise RefusedError(f"not valid JSON: {error}") from error
    return Request("text", {"prompt": text})


def parse_object(item: object, urls: tuple[str, ...] = GENERATING) -> Request:
    """Return the request in one JSON value, for one of the `urls`; raises RefusedError."""
    if isinstance(item, str):
        return Request("string", {"prompt": _prompt(item, "the string")})
    if not isinstance(item, dict):
        raise RefusedError(f"a JSON {type(item).__name__} is not a prompt")
    _check_limits(item.get("body", item))
    request = _request(item, urls)
    return replace(request, at=_timestamp(item["timestamp"])) if "timestamp" in item else request


def _request(item: Mapping[str, Any], urls: tuple[str, ...]) -> Request:
    if "body" in item:
        return _batch(item, urls)
    if "messages" in item:
        return _messages(item)
    for name in ("conversations", "conversation"):
        if name in item:
            return _sharegpt(item, name)
    for name in ("prompt", "text", "question", "text_input"):
        if name in item:
            return _bare(item, name)
    if "hash_ids" in item:
        return _mooncake(item)
    known = "prompt, messages, conversations, text, question, hash_ids, or a batch line's body"
    raise RefusedError(f"no field with a prompt ({known})")


def _batch(item: Mapping[str, Any], urls: tuple[str, ...]) -> Request:
    body, path = item["body"], item.get("url", CHAT)
    if not isinstance(body, dict):
        raise RefusedError("body is not an object")
    if path not in urls:
        lacks = "is not served" if EMBEDDINGS in urls else "does not generate text"
        raise RefusedError(f"url {path!r} {lacks} (but {', '.join(urls)})")
    if item.get("method", "POST") != "POST":
        raise RefusedError(f"method {item['method']!r} is not POST")
    if path == CHAT:
        _check_messages(body.get("messages"))
    elif path == COMPLETIONS:
        _prompt(body.get("prompt"), "prompt")
    elif not body.get("input"):
        raise RefusedError("input is empty")
    return Request("batch", body, path, _id(item))


def _messages(item: Mapping[str, Any]) -> Request:
    _check_messages(item["messages"])
    ours = {"id", "custom_id", "timestamp"}
    body = {name: value for name, value in item.items() if name not in ours}
    return Request("messages", _limited(body), CHAT, _id(item))


def _bare(item: Mapping[str, Any], name: str) -> Request:
    body = {key: value for key, value in item.items() if key in PARAMETERS}
    body["prompt"] = _prompt(item[name], name)
    for key in _LENGTHS:
        if key in item:
            body["output_tokens"] = item[key]
    known = PARAMETERS | {name, *_LENGTHS, "id", "custom_id", "timestamp"}
    unsent = tuple(key for key in item if key not in known)
    return Request(name, _limited(body), id=_id(item), unsent=unsent)


def _mooncake(item: Mapping[str, Any]) -> Request:
    """Take a line of a trace in Mooncake's format, which has lengths and hashes in place of text.

    A hash stands for a block of 512 tokens, so equal hashes become equal tokens: what the prefix
    cache of the traced system could share, it can share here.
    """
    hashes, length = item["hash_ids"], item.get("input_length")
    if not isinstance(hashes, list) or not all(type(block) is int for block in hashes):
        raise RefusedError("hash_ids is not a list of numbers")
    if type(length) is not int or not 0 < length <= len(hashes) * BLOCK:
        raise RefusedError(f"input_length is {length!r}, not 1 to {len(hashes) * BLOCK}")
    tokens: list[int] = []
    for block in hashes:
        tokens += random.Random(block).choices(TOKEN_IDS, k=BLOCK)  # noqa: S311  # no secret
    body = {"prompt": tokens[:length], "output_tokens": item.get("output_length", 1)}
    return Request("mooncake", _limited({**body, "ignore_eos": True}), COMPLETIONS, _id(item))


def _timestamp(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedError(f"timestamp is {value!r}, not a number of ms")
    return value / 1e3


def _sharegpt(item: Mapping[str, Any], name: str) -> Request:
    """Take the turns before the first answer, which is what the model is to write."""
    turns = item[name]
    if not isinstance(turns, list):
        raise RefusedError(f"{name} is not a list")
    messages: list[dict[str, str]] = []
    for turn in turns:
        role, text = _turn(turn)
        if role == "assistant" and messages:
            break
        if role != "assistant":
            messages.append({"role": role, "content": text})
    if not any(message["role"] == "user" for message in messages):
        raise RefusedError(f"{name} has no human turn")
    return Request("sharegpt", {"messages": messages}, CHAT, _id(item))


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RefusedError("a turn is not an object")
    role = _ROLES.get(str(turn.get("from", turn.get("role"))))
    text = turn.get("value", turn.get("content"))
    if role is None or not isinstance(text, str):
        raise RefusedError("a turn lacks from (human, gpt, system) or value")
    return role, text


def _check_limits(body: object) -> None:
    if not isinstance(body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens"):
        limit = body.get(name)
        if limit is not None and (type(limit) is not int or limit < 0):
            raise RefusedError(f"{name} is {limit!r}, not a number from 0 up")


def _limited(body: dict[str, Any]) -> dict[str, Any]:
    """Turn `output_tokens`, the name in load-test files, into the API's `max_tokens`."""
    if "output_tokens" in body:
        limit = body.pop("output_tokens")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise RefusedError(f"output_tokens is {limit!r}, not a number from 1 up")
        body.setdefault("max_tokens", limit)
    return body


def _prompt(value: object, name: str) -> object:
    """Return a text, or a list of token ids, as it is."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    raise RefusedError(f"{name} is empty" if not value else f"{name} is not a string")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages is not a non-empty list")
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        raise RefusedError("a message has no role")


def _id(item: Mapping[str, Any]) -> str:
    value = item.get("custom_id", item.get("id", ""))
    return str(value) if isinstance(value, str | int) else ""
