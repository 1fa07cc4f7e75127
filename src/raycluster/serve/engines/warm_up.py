"""The first request of each kind, which an engine's server is asked before anybody else asks.

vLLM compiles, loads and allocates some things when a request first needs them, and every other
request waits meanwhile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp

from raycluster.serve.engines.server import Server
from raycluster.serve.ready import GENERATES, questions

MOST_S = 120.0
"""Seconds for one answer, after which the replica serves without the kinds that are left."""

KINDS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1, "top_p": 0.9, "top_k": 5},
    "logprobs": {"logprobs": 1},
    "structured output": {"structured_outputs": {"json": {"type": "object"}}},
}
"""What is asked of a model that generates, beside its name, a prompt and `max_tokens`: the third
has vLLM compile, on a GPU the second too, and the last builds a grammar's tables."""

logger = logging.getLogger("ray.serve")


async def warm_up(server: Server, model: str) -> int:
    """Ask one small request of each kind, or one of a model that does not generate.

    What the model refuses, or does not answer, is left to whoever asks it.
    Returns the tokens that this generated. Raises ServerEndedError where the server ends of it.
    """
    (path, body), *others = questions(model)
    tokens = 0
    for number, (kind, more) in enumerate(KINDS.items()):
        status, made = await _ask(server, kind, path, {**body, "max_tokens": 2, **more})
        tokens += made
        if status == 404 and not number:
            break
        if not status:
            return tokens
    else:
        return tokens
    for path, body in others:
        status, _ = await _ask(server, path, path, body)
        if status != 404:
            break
    return 0


async def _ask(server: Server, kind: str, path: str, body: Mapping[str, Any]) -> tuple[int, int]:
    """Return the answer's status, 0 where there is none, and the tokens that it took."""
    try:
        timeout = aiohttp.ClientTimeout(total=MOST_S)
        async with server.http.post(path, json=body, timeout=timeout) as answer:
            status, said = answer.status, await answer.text()
    except TimeoutError:
        status, said = 0, f"no answer in {MOST_S:g} s"
    except aiohttp.ClientError as error:
        await server.answers()
        status, said = 0, repr(error)
    if status >= 500 or not status:
        told = f"{status}: {said}" if status else said
        logger.warning("raycluster: the first request of its kind (%s) failed: %.300s", kind, told)
    if status == 200 and path == GENERATES:
        return status, int(json.loads(said)["usage"]["completion_tokens"])
    return status, 0
