"""Before an engine: who asks, whether they may, and what their requests took.

vLLM's server gets this file as a middleware, alone in a folder on the path of its own Python, which
may be another one than the replica's: it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

OWNER_HEADER, MODELS_HEADER = "x-raycluster-owner", "x-raycluster-models"
"""What the gateway tells of the key that a request came with: its owner, and the models it is for.

No second one means all. Clients of the gateway cannot set them.
"""

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

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LISTS = re.compile(r"(?:/m/[^/]+)?/v1/models/?")
_MESSAGES = re.compile(r"(?:/m/[^/]+)?/v1/messages(?:/|$)")
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
                await self._refuse(scope, send)
            else:
                if self._model and scope.get("method") == "POST":
                    usage().asked(self._model)
                await self._app(scope, receive, self._named(send))
        finally:
            OWNER.reset(token)

    def _named(self, send: Send) -> Send:
        """Return a way out by which the gateway's log learns the model."""
        if not self._model:
            return send
        name = (MODEL_HEADER.encode(), self._model.encode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), name]}
            await send(message)

        return named

    async def _refuse(self, scope: Message, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        message = f"The model `{self._model}` is not one of those that this key may use."
        said: dict[str, Any] = {"error": {"message": message}}
        if _MESSAGES.match(scope["path"]):
            said = {"type": "error", "error": {"type": "permission_error", "message": message}}
        else:
            said["error"] |= {"type": "invalid_request_error", "param": "model"}
            said["error"]["code"] = "model_not_found"
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})


class Inside:
    """What vLLM's server takes as a middleware."""

    def __init__(self, app: ASGI) -> None:
        self._app = app
        model = os.environ.get(MODEL, "")
        self._guard = Guard(self._answer, model)
        count_in_vllm(model, usage())
        let_go_in_vllm()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
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
                    figures.took(state.lora_name or model, owner, *_taken(state))
            return state

    add = OutputProcessor.add_request

    def add_request(self: Processor, request: State, *args: object, **more: object) -> None:
        if type(self.request_states) is not Counted:
            self.request_states = Counted(self.request_states)
        add(self, request, *args, **more)
        state = self.request_states.get(request.request_id)
        if state is not None and not hasattr(state, "raycluster_owner"):
            state.raycluster_owner = OWNER.get()

    OutputProcessor.add_request = add_request


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
