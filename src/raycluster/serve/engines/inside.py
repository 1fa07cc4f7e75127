"""Before an engine: who asks, whether they may, and what their requests took.

vLLM's server gets this file as a middleware, with `quotas` alone beside it, on the path of its own
Python, which may be another one than the replica's: they import nothing else of ours. There the two
are a package of another name, as `vllm.write_inside` writes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from raycluster.serve.engines.quotas import (
    CLASS,
    UNTOLD,
    Asked,
    Limits,
    Refusal,
    Turns,
    expected_of,
    limits_of,
    quotas,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

OWNER_HEADER, MODELS_HEADER = "x-raycluster-owner", "x-raycluster-models"
LIMITS_HEADER = "x-raycluster-limits"
"""What the gateway tells of the key that a request came with: its owner, the models it is for, and
its limits.

No second one means all models. Clients of the gateway cannot set them.
"""

QUOTAS_PATH = "/raycluster/quotas"
"""Where the replica tells what keys have used elsewhere, and learns what they have used here."""

MODEL_HEADER = "x-raycluster-model"
"""What the gateway's log learns of an answer."""

NOBODY = "-"
"""The owner of requests that came without a key."""

OTHERS = "other"
MOST_OWNERS = 1000
"""Owners who are counted apart; whoever is at the cluster's own ports can name any number."""

MODEL = "RAYCLUSTER_MODEL"
"""The variable that tells vLLM's server the name of its model in the spec."""

OWNER: ContextVar[str] = ContextVar("raycluster_owner", default=NOBODY)
ASKED: ContextVar[Asked | None] = ContextVar("raycluster_asked", default=None)
PRIORITY: ContextVar[int] = ContextVar("raycluster_priority", default=0)

MOST_READ = 1 << 20
"""Bytes of a body that are looked into for how many tokens it asks for."""

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LISTS = re.compile(r"(?:/m/[^/]+)?/v1/models/?")
_MESSAGES = re.compile(r"(?:/m/[^/]+)?/v1/messages(?:/|$)")
_NOT_FOR = "The model `{}` is not one of those that this key may use."
_FREE = re.compile(r".*/(?:count_tokens|cancel|render|tokenize|detokenize)/?")
"""What takes no tokens."""
_FLAG = "--tool-call-parser"

PARSERS = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "hermes"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "hermes"),
    **dict.fromkeys(("mistral", "mistral3", "ministral3", "mixtral", "pixtral"), "mistral"),
    **dict.fromkeys(("granite", "granitemoe"), "granite"),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe"), "ernie45"),
    **dict.fromkeys(("hunyuan_v1_moe", "hunyuan_v1_dense"), "hunyuan_a13b"),
    "apertus": "apertus",
    "cohere2": "cohere_command3",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "gpt_oss": "openai",
    "granitemoehybrid": "granite4",
    "internlm2": "internlm",
    "jamba": "jamba",
    "kimi_k2": "kimi_k2",
    "lfm2": "lfm2",
    "llama4": "llama4_pythonic",
    "longcat_flash": "longcat",
    "minimax_m2": "minimax_m2",
    "olmo3": "olmo3",
    "seed_oss": "seed_oss",
    "step3": "step3",
}
"""The parser of vLLM that reads the calls of tools of a family, by `model_type` of its config."""

NAMED = (
    (re.compile(r"hermes"), "hermes"),
    (re.compile(r"qwen3.*coder"), "qwen3_coder"),
    (re.compile(r"llama-?3"), "llama3_json"),
    (re.compile(r"phi-?4-?mini"), "phi4_mini_json"),
    (re.compile(r"xlam"), "xlam"),
)
"""The same where the name tells more than the config: families that share another one's."""


class Guard:
    """An ASGI application for the keys that may use `model`; "" is a router, which has several."""

    def __init__(self, app: ASGI, model: str) -> None:
        self._app = app
        self._model = model

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        owner, models = asked_by(scope["headers"])
        token = OWNER.set(owner)
        try:
            if models is not None and _LISTS.fullmatch(scope["path"]):
                await self._app(scope, receive, Rewritten(send, lambda x: _only(x, models)))
            elif models is not None and self._model and self._model not in models:
                message = _NOT_FOR.format(self._model)
                told = _error(message, "invalid_request_error", "model_not_found", "model")
                await _refuse(scope, send, 403, told, anthropic="permission_error")
            elif self._model and (scope.get("method") == "POST" or scope["type"] == "websocket"):
                await self._limited(scope, receive, send, owner)
            else:
                await self._app(scope, receive, self._named(send))
        finally:
            OWNER.reset(token)

    async def _limited(self, scope: Message, receive: Receive, send: Send, owner: str) -> None:
        """Let a request through that the limits of its key leave room for."""
        limits = _limits(scope["headers"])
        asked: Asked | Refusal | None = None
        if owner != NOBODY and not _FREE.fullmatch(scope["path"]):
            receive, expected, most = await _expected(scope, receive, limits)
            asked = quotas().ask(owner, limits, expected, most)
        if isinstance(asked, Refusal):
            told = _error(asked.message, asked.over.kind, "rate_limit_exceeded")
            headers = [(b"retry-after", b"%d" % asked.later), *asked.over.headers]
            await _refuse(scope, send, 429, told, anthropic="rate_limit_error", headers=headers)
            return
        if scope["type"] == "http":
            usage().asked(self._model)
        tokens = ASKED.set(asked), PRIORITY.set(limits.priority)
        try:
            more = asked.headers if asked else ()
            await self._app(scope, receive, self._named(send, more))
        finally:
            ASKED.reset(tokens[0])
            PRIORITY.reset(tokens[1])
            if asked:
                asked.end()

    def _named(self, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> Send:
        """Return a way out by which the gateway's log learns the model, and clients `headers`."""
        if not self._model:
            return send
        more = [(MODEL_HEADER.encode(), self._model.encode()), *headers]

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return named


class Inside:
    """What vLLM's server takes as a middleware."""

    def __init__(self, app: ASGI) -> None:
        self._app = app
        model = os.environ.get(MODEL, "")
        self._guard = Guard(self._answer, model)
        count_in_vllm(model, usage())
        let_go_in_vllm()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if str(scope.get("path", "")).endswith(QUOTAS_PATH) and scope.get("method") == "POST":
            await _exchange(scope, receive, send)
        else:
            await self._guard(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        mended = Rewritten(send, lambda x: _without_flags(x, scope), statuses=(400,))
        await self._app(scope, receive, mended)


class Rewritten:
    """A way out for answers: JSON of some statuses is changed, all else passes as it comes."""

    def __init__(
        self, send: Send, change: Callable[[bytes], bytes], statuses: tuple[int, ...] = (200,)
    ) -> None:
        self._send = send
        self._change = change
        self._statuses = statuses
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in self._statuses:
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(b"application/json"):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self._change(self._body)
        start, self._start = self._start, None
        length = (b"content-length", str(len(body)).encode())
        headers = [h for h in start["headers"] if h[0].lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body})


class Usage:
    """Requests and tokens by model and owner, in prometheus_client's registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._tokens = Counter(
            "raycluster_usage_tokens",
            "Tokens of requests that have ended or were given up; kind: prompt (cached included),"
            " cached, generation.",
            ("model", "owner", "kind"),
            registry=registry,
        )
        self._requests = Counter(
            "raycluster_usage_requests",
            "Requests that the engine was asked.",
            ("model", "owner"),
            registry=registry,
        )
        self._owners: set[str] = set()

    def asked(self, model: str) -> None:
        """Count a request of whoever asks now."""
        self._requests.labels(model, self._known(OWNER.get())).inc()

    def took(self, model: str, owner: str, prompt: int, cached: int, generation: int) -> None:
        """Count the tokens of a sequence."""
        for kind, tokens in (("prompt", prompt), ("cached", cached), ("generation", generation)):
            self._tokens.labels(model, self._known(owner), kind).inc(tokens)

    def _known(self, owner: str) -> str:
        if owner in self._owners or len(self._owners) < MOST_OWNERS:
            self._owners.add(owner)
            return owner
        return OTHERS


@cache
def usage() -> Usage:
    """Return the figures of this process."""
    return Usage()


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


def asked_by(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, frozenset[str] | None]:
    """Return the owner of a request's key, and the models that the key is for; None is all."""
    owner, models = NOBODY, None
    for name, value in headers:
        if name == OWNER_HEADER.encode():
            told = value.decode("latin-1")
            owner = told if _OWNER.fullmatch(told) else NOBODY
        elif name == MODELS_HEADER.encode():
            models = frozenset(value.decode("latin-1").split(",")) | (models or frozenset())
    return owner, models


def _limits(headers: Iterable[tuple[bytes, bytes]]) -> Limits:
    told = (value for name, value in headers if name == LIMITS_HEADER.encode())
    return limits_of(next(told, b"").decode("latin-1"))


async def _expected(scope: Message, receive: Receive, limits: Limits) -> tuple[Receive, int, int]:
    """Return a way to the same body, the tokens it may take, and the most that one part generates.

    The body is read where tokens are limited alone: vLLM reads it whole before it does anything.
    """
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    json_body = not any(b"multipart/" in kind for kind in kinds)
    if not limits.tokens or not json_body or scope["type"] != "http":
        return receive, UNTOLD, UNTOLD
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    parts = [message.get("body", b"") for message in messages]
    length = sum(map(len, parts))
    expected, most = expected_of(b"".join(parts) if length <= MOST_READ else b"", length)
    read = iter(messages)

    async def again() -> Message:
        return next(read, None) or await receive()

    return again, expected, most


async def _exchange(scope: Message, receive: Receive, send: Send) -> None:
    """Answer the replica; who comes by the gateway has an owner."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    status, said = 404, b"{}"
    with suppress(ValueError):
        if asked_by(scope["headers"])[0] == NOBODY:
            status, said = 200, quotas().exchange(body)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def _error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": kind, "param": param, "code": code}


async def _refuse(
    scope: Message,
    send: Send,
    status: int,
    error: Mapping[str, str | None],
    *,
    anthropic: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Say an error in OpenAI's form, or in Anthropic's, where its kind has another name."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013 if status == 429 else 1008})
        return
    said: dict[str, Any] = {"error": dict(error)}
    if _MESSAGES.match(scope["path"]):
        said = {"type": "error", "error": {"type": anthropic, "message": error["message"]}}
    told = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def _only(body: bytes, models: frozenset[str]) -> bytes:
    """Return a list of models with those alone that a key is for, and their adapters."""
    try:
        told = json.loads(body)
        cards = told["data"]
        told["data"] = [c for c in cards if {c["id"], c.get("parent")} & models]
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json.dumps(told).encode()


def _without_flags(body: bytes, scope: Message) -> bytes:
    """Return vLLM's error in words of the spec, where it names a flag of its command line."""
    if _FLAG.encode() not in body:
        return body
    try:
        told = json.loads(body)
        if _FLAG in told["error"]["message"]:
            told["error"]["message"] = _no_parser(scope)
    except (ValueError, TypeError, KeyError):
        return body
    return json.dumps(told).encode()


def _no_parser(scope: Message) -> str:
    from vllm.tool_parsers import ToolParserManager

    model_type = path = ""
    with suppress(AttributeError, KeyError):
        config = scope["app"].state.engine_client.model_config
        model_type, path = str(config.hf_config.model_type), str(config.model)
    known = sorted(ToolParserManager.list_registered())
    name = os.environ.get(MODEL, "")
    fits = parser_of(model_type, f"{name} {path}", known)
    which = "" if fits else f"; PARSER is one of {', '.join(known)}"
    return (
        "`tools` need a parser of what the model says: in the spec, for the model"
        f' "{name}", engine_args = {{ enable_auto_tool_choice = true,'
        f' tool_call_parser = "{fits or "PARSER"}" }}{which}'
    )


def parser_of(model_type: str, named: str, known: Iterable[str]) -> str:
    """Return the parser of `known` that fits a model's family, or ""."""
    said = (parser for pattern, parser in NAMED if pattern.search(named.lower()))
    found = next(said, PARSERS.get(model_type, ""))
    return found if found in set(known) else ""
