"""The formats of one item of a prompt file, as JSON; pure."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
SCORE = "/v1/score"
RERANK = "/v1/rerank"
RERANK_2 = "/v2/rerank"

GENERATING = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
EVERY = (*GENERATING, EMBEDDINGS, SCORE, RERANK, RERANK_2)
"""Where lines may go: what answers with one JSON object to one JSON object."""

NEEDED = {
    RESPONSES: ("input",),
    EMBEDDINGS: ("input",),
    RERANK: ("query", "documents"),
    RERANK_2: ("query", "documents"),
}
"""Without which the request of a batch line is certainly none."""

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

SENT = PARAMETERS | {"output_tokens", "output_length", "timestamp"}

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

PROMPTS = ("prompt", "text", "question", "text_input")
"""The fields that hold a bare prompt, the first of them that is there."""

HOLDERS = ("body", "params", "messages", "conversations", "conversation", *PROMPTS, "hash_ids")
"""The fields that say what a line asks for, in the order in which they are looked for."""

_LENGTHS = ("output_tokens", "output_length")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TORN_ID = re.compile(r'[{,]\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_PATH = re.compile(
    r"(?:/openai)?(?:/deployments/(?P<model>[^/]+))?(?:/v1)?/(?P<name>[a-z]+(?:/completions)?)/?"
)


class RefusedLineError(Exception):
    """The line is not a prompt; the message says why. `id` is the line's own, where it has one."""

    def __init__(self, reason: str, id: str = "") -> None:
        super().__init__(reason)
        self.id = id


class BadIdError(RefusedLineError):
    """What stands for the line's id is none."""


@dataclass(frozen=True)
class Request:
    """A line, understood. Without `path` the body holds a bare `prompt`.

    `at` is the line's timestamp in seconds, where it has one; `conversation` all turns, where the
    body has the first alone.
    """

    format: str
    body: Mapping[str, Any]
    path: str = ""
    id: str = ""
    unsent: tuple[str, ...] = ()
    conversation: list[dict[str, str]] | None = None
    at: float | None = None

    def turns(self) -> Iterator[Request]:
        """Yield a request for each answer that a conversation holds, and for the one to come.

        Each has what was said before, as the file has it. What is no conversation is one request.
        """
        messages = self.conversation or self.body.get("messages")
        if not isinstance(messages, list) or self.path not in {CHAT, MESSAGES}:
            yield self
            return
        ends = [i for i, said in enumerate(messages) if said["role"] == "assistant" and i]
        if messages[-1]["role"] != "assistant":
            ends.append(len(messages))
        for number, end in enumerate(ends or [len(messages)]):
            name = f"{self.id}#{number + 1}" if self.id and number else self.id
            yield replace(self, id=name, body={**self.body, "messages": messages[:end]})


def parse_line(line: bytes, urls: tuple[str, ...] = GENERATING, column: str = "") -> Request:
    """Return the request in one line of JSON, for one of the `urls`; raises RefusedError.

    `column` is the field that holds the prompt; without it the usual ones are looked for.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        torn = _torn_id(line.decode(errors="replace"))
        raise RefusedLineError(f"not UTF-8 at byte {error.start + 1}", torn) from error
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedLineError(f"not valid JSON: {error}", _torn_id(text)) from error
    return parse_object(item, urls, column)


def parse_object(item: object, urls: tuple[str, ...] = GENERATING, column: str = "") -> Request:
    """Return the request in one JSON value, for one of the `urls`; raises RefusedError."""
    if isinstance(item, str):
        return Request("string", {"prompt": _bare_prompt(item, "the string")})
    if not isinstance(item, dict):
        raise RefusedLineError(f"a JSON {type(item).__name__} is not a prompt")
    name = _id(item)
    try:
        item = _picked(item, column) if column else item
        _check_limits(item.get("body", item))
        request = replace(_request(item, urls), id=name)
        return (
            replace(request, at=_timestamp(item["timestamp"])) if "timestamp" in item else request
        )
    except RefusedLineError as error:
        error.id = name
        raise


def _torn_id(text: str) -> str:
    """Return the id of a line that cannot be read as a whole: its result is joined by it."""
    found = _TORN_ID.search(text)
    with suppress(ValueError):
        name: str = json.loads(found[1]) if found else ""
        return "" if "\ufffd" in name else name
    return ""


def _picked(item: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the line with what its field `column` holds as its prompt."""
    if column not in item:
        raise RefusedLineError(f"no field {column!r}")
    value = item[column]
    turns = isinstance(value, list) and value and isinstance(value[0], dict)
    name = ("messages" if "role" in value[0] else "conversations") if turns else "prompt"
    rest = {key: each for key, each in item.items() if key not in HOLDERS and key != column}
    if turns:  # such a line's other fields would all be sent
        rest = {key: each for key, each in rest.items() if key in SENT}
    return {name: value, **rest}


def _request(item: Mapping[str, Any], urls: tuple[str, ...]) -> Request:
    if "body" in item:
        return _batch(item, urls)
    if isinstance(item.get("params"), dict):  # a line of Anthropic's batches
        return _batch({"url": MESSAGES, "body": item["params"]}, urls)
    if "messages" in item:
        return _messages(item)
    for name in ("conversations", "conversation"):
        if name in item:
            return _sharegpt(item, name)
    for name in PROMPTS:
        if name in item:
            return _messages(_picked(item, name)) if _is_said(item[name]) else _bare(item, name)
    if "hash_ids" in item:
        return _mooncake(item)
    known = "prompt, messages, conversations, text, question, hash_ids, or a batch line's body"
    raise RefusedLineError(f"no field with a prompt ({known})")


def _batch(item: Mapping[str, Any], urls: tuple[str, ...]) -> Request:
    body, url = item["body"], item.get("url") or CHAT
    if not isinstance(body, dict):
        raise RefusedLineError("body is not an object")
    path, model = _path(url)
    if path not in urls:
        raise RefusedLineError(f"url {url!r} is not served (but {', '.join(urls)})")
    if str(item.get("method") or "POST").upper() != "POST":
        raise RefusedLineError(f"method {item['method']!r} is not POST")
    if path in {CHAT, MESSAGES}:
        _check_messages(body.get("messages"))
    elif path == COMPLETIONS and "prompt_embeds" not in body:
        _prompt(body.get("prompt"), "prompt")
    for name in NEEDED.get(path, ()):
        if not body.get(name) and not (path == EMBEDDINGS and body.get("messages")):
            raise RefusedLineError(f"{name} is empty")
    if body.get("background"):
        raise RefusedLineError("background: the answer would not hold what the model says")
    return Request(
        "batch", body if body.get("model") or not model else {**body, "model": model}, path
    )


def _path(url: object) -> tuple[str, str]:
    """Return the path that a line's url means, and the model that it names, as Azure's may."""
    if not isinstance(url, str) or url in EVERY:
        return str(url), ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, ""
    found = _PATH.fullmatch(parts.path if parts.path.startswith("/") else f"/{parts.path}")
    if found is None or parts.netloc:  # another place's address was not meant for this one
        return url, ""
    return f"/v1/{found['name']}", unquote(found["model"] or "")


def _is_said(value: object) -> bool:
    """Tell whether a field holds messages, as data sets have them in `prompt` too."""
    return bool(value) and isinstance(value, list) and all(map(_has_role, value))


def _has_role(message: object) -> bool:
    return isinstance(message, dict) and "role" in message


def _messages(item: Mapping[str, Any]) -> Request:
    _check_messages(item["messages"])
    ours = {"id", "custom_id", "timestamp"}
    body = {name: value for name, value in item.items() if name not in ours}
    return Request("messages", _limited(body), CHAT)


def _bare(item: Mapping[str, Any], name: str) -> Request:
    body = {key: value for key, value in item.items() if key in PARAMETERS}
    body["prompt"] = _bare_prompt(item[name], name)
    for key in _LENGTHS:
        if key in item:
            body["output_tokens"] = item[key]
    known = PARAMETERS | {name, *_LENGTHS, "id", "custom_id", "timestamp"}
    unsent = tuple(key for key in item if key not in known)
    return Request(name, _limited(body), unsent=unsent)


def _mooncake(item: Mapping[str, Any]) -> Request:
    """Take a line of a trace in Mooncake's format, which has lengths and hashes in place of text.

    A hash stands for a block of 512 tokens, so equal hashes become equal tokens: what the prefix
    cache of the traced system could share, it can share here.
    """
    hashes, length = item["hash_ids"], item.get("input_length")
    if not isinstance(hashes, list) or not all(type(block) is int for block in hashes):
        raise RefusedLineError("hash_ids is not a list of numbers")
    whole = _whole(length)
    if whole is None or not 0 < whole <= len(hashes) * BLOCK:
        raise RefusedLineError(f"input_length is {length!r}, not 1 to {len(hashes) * BLOCK}")
    tokens: list[int] = []
    for block in hashes:
        tokens += random.Random(block).choices(TOKEN_IDS, k=BLOCK)  # noqa: S311  # no secret
    body = {"prompt": tokens[:whole], "output_tokens": item.get("output_length", 1)}
    return Request("mooncake", _limited({**body, "ignore_eos": True}), COMPLETIONS)


def _timestamp(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedLineError(f"timestamp is {value!r}, not a number of ms")
    return value / 1e3


def _sharegpt(item: Mapping[str, Any], name: str) -> Request:
    """Take the turns before the first answer, which is what the model is to write."""
    turns = item[name]
    if not isinstance(turns, list):
        raise RefusedLineError(f"{name} is not a list")
    said = [{"role": role, "content": text} for role, text in map(_turn, turns)]
    while said and said[0]["role"] == "assistant":
        said.pop(0)
    first = next((i for i, turn in enumerate(said) if turn["role"] == "assistant"), len(said))
    if not any(message["role"] == "user" for message in said[:first]):
        raise RefusedLineError(f"{name} has no human turn")
    return Request("sharegpt", {"messages": said[:first]}, CHAT, conversation=said)


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RefusedLineError("a turn is not an object")
    role = _ROLES.get(str(turn.get("from", turn.get("role"))))
    text = turn.get("value", turn.get("content"))
    if role is None or not isinstance(text, str):
        raise RefusedLineError("a turn lacks from (human, gpt, system) or value")
    return role, text


def _check_limits(body: object) -> None:
    if not isinstance(body, dict):
        return
    for name in LIMITS:
        limit = body.get(name)
        if limit is not None and (_whole(limit) is None):
            raise RefusedLineError(f"{name} is {limit!r}, not a number from 0 up")


def _whole(value: object) -> int | None:
    """Return a number from 0 up as servers read it: 16.0 and "16" are 16; None for all else."""
    try:
        number = float(value) if isinstance(value, int | float | str) else -1.0
        whole = int(number)
    except (ValueError, OverflowError):
        return None
    return whole if whole == number >= 0 else None


def _limited(body: dict[str, Any]) -> dict[str, Any]:
    """Turn `output_tokens`, the name in load-test files, into the API's `max_tokens`."""
    if "output_tokens" in body:
        limit = body.pop("output_tokens")
        whole = None if isinstance(limit, bool) else _whole(limit)
        if not whole:
            raise RefusedLineError(f"output_tokens is {limit!r}, not a number from 1 up")
        body.setdefault("max_tokens", whole)
    return body


def _bare_prompt(value: object, name: str) -> object:
    if isinstance(value, str) and not value.strip():
        raise RefusedLineError(f"{name} is empty")
    return _prompt(value, name)


def _prompt(value: object, name: str) -> object:
    """Return what completions take as it is: a text, token ids, or a list of either."""
    if isinstance(value, str) or _are_tokens(value):
        return value
    several: list[object] = value if isinstance(value, list) else []
    texts, tokens = all(isinstance(each, str) for each in several), all(map(_are_tokens, several))
    if several and (texts or tokens):
        return value
    raise RefusedLineError(f"{name} is empty" if not value else f"{name} is not a string")


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise RefusedLineError("messages is not a non-empty list")
    if not all(map(_has_role, messages)):
        raise RefusedLineError("a message has no role")


def _id(item: Mapping[str, Any]) -> str:
    """Return the line's `custom_id`, or else `id`: a text, or a whole number as its digits.

    Raises BadIdError for one of another kind, which no reader would find again by its text.
    """
    for name in ("custom_id", "id"):
        if name in item:
            value = item[name]
            if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
                shown = json.dumps(value)[:80]
                raise BadIdError(f"{name} is {shown}, not a text with something in it")
            return str(value)
    return ""
