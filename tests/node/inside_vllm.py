"""Drives vLLM's own output processor and middlewares with ours among them, without an engine.

Run in a node's Python, with the folder that holds our middleware on its path; prints what came.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from argparse import Namespace
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import Any

_version = metadata.version


def version(distribution_name: str) -> str:
    """Name the build for CPUs as vLLM wants it."""
    return "0.32.0+cpu" if distribution_name == "vllm" else _version(distribution_name)


metadata.version = version

from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from prometheus_client import REGISTRY  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.core.sched.request_queue import (  # noqa: E402
    SchedulingPolicy,
    create_request_queue,
)
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor  # noqa: E402
from vllm.v1.metrics.stats import IterationStats, PrefillStats  # noqa: E402
from vllm.v1.request import Request as Waiting  # noqa: E402

key: Any = import_module("raycluster_inside.key")
quotas: Any = import_module("raycluster_inside.quotas")
OWNERS = ("alice", "bob", "carol", key.NOBODY)
NEED = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


def counted() -> dict[str, dict[str, int]]:
    """Return our counters of tokens by owner and kind."""
    found: dict[str, dict[str, int]] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name == "raycluster_usage_tokens_total":
                of = found.setdefault(sample.labels["owner"], {})
                of[sample.labels["kind"]] = int(sample.value)
    return found


def requested(name: str, prompt: int) -> EngineCoreRequest:
    """Return a request with a prompt of so many tokens."""
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=[1] * prompt,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=100, detokenize=False),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=f"ext-{name}",
    )


async def handed_over() -> list[str]:
    """Return what the engine is told to abort of a request whose client leaves meanwhile."""
    aborted: list[str] = []
    begun = asyncio.Event()

    async def add(_request: object) -> None:
        begun.set()
        await asyncio.sleep(600)

    async def abort(ids: list[str]) -> None:
        aborted.extend(ids)

    front: Any = object.__new__(AsyncLLM)
    front.output_processor = OutputProcessor(None, log_stats=True)
    front.engine_core = SimpleNamespace(add_request_async=add, abort_requests_async=abort)
    front.log_requests = False
    front.check_admission = lambda *_, **__: None
    task = asyncio.ensure_future(front._add_request(requested("r", 3), None, None, 0, None))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    return aborted


class Engine:
    """Stands for vLLM's core: makes the outputs of sequences, of which many are given up."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.processor = OutputProcessor(None, log_stats=True)
        self.theirs = dict.fromkeys(("prompt", "cached", "generation"), 0)
        self.expected: dict[str, dict[str, int]] = {}

    def run(self, number: int) -> None:
        """Have one sequence begin, and end in one of all ways."""
        owner, name = self._random.choice(OWNERS), f"r{number}"
        prompt, made = self._random.randint(1, 50), 0
        request = requested(name, prompt)
        token = key.OWNER.set(owner)
        asked = None
        if owner != key.NOBODY:
            asked = quotas.quotas().ask(owner, quotas.Limits())
        given = key.ASKED.set(asked)
        self.processor.add_request(request, None)
        key.OWNER.reset(token)
        key.ASKED.reset(given)
        cached = self._random.randint(0, prompt)
        steps, ends = self._random.randint(0, 6), self._random.random() < 0.5
        for step in range(steps):
            tokens = self._random.randint(1, 3)
            stats = None
            if step == 0:
                stats = PrefillStats()
                stats.set(prompt, cached, 0)
            last = ends and step == steps - 1
            output = EngineCoreOutput(
                name,
                [7] * tokens,
                finish_reason=FinishReason.LENGTH if last else None,
                prefill_stats=stats,
            )
            made += tokens
            told = IterationStats()
            self.processor.process_outputs([output], time.monotonic(), told)
            self.theirs["prompt"] += told.num_prompt_tokens
            self.theirs["cached"] += told.prompt_token_stats.cached_tokens
            self.theirs["generation"] += told.num_generation_tokens
        if asked is not None and self._random.random() < 0.5:
            asked.end()  # a client that leaves before the engine lets go
            asked = None
        if not (ends and steps):
            internal = self._random.random() < 0.5
            self.processor.abort_requests([name if internal else f"ext-{name}"], internal=internal)
        of = self.expected.setdefault(owner, dict.fromkeys(self.theirs, 0))
        for kind, tokens in (("prompt", prompt), ("cached", cached), ("generation", made)):
            of[kind] += tokens if steps else 0
        if asked is not None:
            asked.end()


def limited() -> dict[str, int]:
    """Return what keys have used of their limits today, by owner."""
    used = json.loads(quotas.quotas().exchange(b"{}"))["used"]
    return {owner: numbers[4] for owner, numbers in used.items() if owner in OWNERS}


def running() -> list[int]:
    """Return what a request counts before its first token, while it runs, and holds afterwards."""
    told = []
    processor = OutputProcessor(None, log_stats=True)
    asked = quotas.quotas().ask("dave", quotas.Limits(tokens_per_day=10_000), 5000, 50)
    token = key.ASKED.set(asked)
    processor.add_request(requested("x", 1000), None)
    key.ASKED.reset(token)
    told.append(asked.news())
    stats = PrefillStats()
    stats.set(1000, 0, 0)
    output = EngineCoreOutput("x", [7] * 7, prefill_stats=stats)
    processor.process_outputs([output], 0.0, IterationStats())
    told.append(asked.news())
    processor.abort_requests(["x"], internal=True)
    asked.end()
    told.append(asked.held)
    return told


def order() -> list[str]:
    """Return whose requests leave vLLM's own queue, in turn; a light key comes after a flood."""
    processor = OutputProcessor(None, log_stats=True)
    queue = create_request_queue(SchedulingPolicy.PRIORITY)
    sent = [("low", "low"), *[("flood", "")] * 100, *[("light", "")] * 3, ("high", "high")]
    for number, (owner, priority) in enumerate(sent):
        request = requested(f"{owner}-{number}", 20)
        tokens = key.OWNER.set(owner), key.PRIORITY.set(quotas.PRIORITIES.get(priority, 0))
        processor.add_request(request, None)
        key.OWNER.reset(tokens[0])
        key.PRIORITY.reset(tokens[1])
        queue.add_request(Waiting.from_engine_core_request(request, None))
    return [queue.pop_request().request_id.partition("-")[0] for _ in sent]


def wishes() -> list[bool]:
    """Tell whether requests have the priority that they name: without a key, and with a key."""
    processor, told = OutputProcessor(None, log_stats=True), []
    for owner in (key.NOBODY, "erin"):
        request = requested(f"wish-{owner}", 20)
        request.priority = -7
        token = key.OWNER.set(owner)
        processor.add_request(request, None)
        key.OWNER.reset(token)
        told.append(request.priority < 0)
    return told


def served() -> dict[str, Any]:
    """Return what clients of vLLM's middlewares get."""
    app = FastAPI()
    middleware = ["raycluster_inside.middleware.Middleware"]
    more = {"allow_credentials": False, "api_key": None, "enable_request_id_headers": False}
    listed = {"allowed_origins": [], "allowed_methods": ["*"], "allowed_headers": ["*"]}
    init_entrypoints_middleware(Namespace(middleware=middleware, **more, **listed), app, ())
    config = SimpleNamespace(hf_config=SimpleNamespace(model_type="qwen2"), model="/models/x")
    app.state.engine_client = SimpleNamespace(model_config=config)

    async def chat(request: Request) -> JSONResponse:
        if (await request.json()).get("tools"):
            return JSONResponse({"error": {"message": NEED, "code": 400}}, status_code=400)
        return JSONResponse({"owner": key.OWNER.get()})

    app.add_api_route("/v1/chat/completions", chat, methods=["POST"])
    client = TestClient(app)

    def ask(body: dict[str, Any], **headers: str) -> tuple[int, Any]:
        sent = {f"x-raycluster-{name}": value for name, value in headers.items()}
        answer = client.post("/v1/chat/completions", json=body, headers=sent)
        return answer.status_code, answer.json()

    return {
        "tools": ask({"tools": [1]}),
        "plain": ask({}, owner="alice", models="a,b"),
        "nobody": ask({}),
        "other": ask({}, owner="alice", models="b"),
        "some": ask({"max_tokens": 5}, owner="frank", limits="requests_per_minute=1"),
        "full": ask({"max_tokens": 5}, owner="frank", limits="requests_per_minute=1"),
    }


def main() -> None:
    """Print what was asked, counted and expected."""
    answers = served()
    engine = Engine(seed=1)
    for number in range(1000):
        engine.run(number)
    left = len(engine.processor.request_states)
    told = {"counted": counted(), "expected": engine.expected, "theirs": engine.theirs}
    aborted = asyncio.run(handed_over())
    told |= {"limited": limited(), "running": running(), "order": order(), "wishes": wishes()}
    print(json.dumps({"answers": answers, "left": left, "aborted": aborted, **told}))


if __name__ == "__main__":
    main()
