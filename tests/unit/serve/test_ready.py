from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from raycluster.serve import ready
from raycluster.serve.engines import Message, Receive, Send
from raycluster.serve.ready import GOOD_FOR_S, Readiness, questions


class Engine:
    """An application that answers with `status`; while `held`, it answers nothing.

    With `path` it has this one alone.
    """

    def __init__(self, status: int = 200, path: str = "") -> None:
        self.status = status
        self.path = path
        self.held: asyncio.Event | None = None
        self.asked: list[Any] = []
        self.cancelled = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.asked.append((scope["path"], json.loads((await receive())["body"])))
        try:
            if self.held:
                await self.held.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        status = 404 if self.path not in ("", scope["path"]) else self.status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"told": 1}'})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/classify", "/pooling"])
def test_a_model_is_asked_what_it_can_answer(path: str) -> None:
    engine = Engine(path=path)
    asked = Readiness(engine, questions("m"), lambda: 0.0)
    assert asyncio.run(asked.problem()) == ""
    assert engine.asked[-1][0] == path
    assert engine.asked[-1][1]["model"] == "m"


def test_a_good_answer_lasts_and_a_bad_one_does_not() -> None:
    now = [100.0]
    engine = Engine()
    readiness = Readiness(engine, questions("m"), lambda: now[0])

    async def twice() -> list[str]:
        return [await readiness.problem(), await readiness.problem()]

    assert asyncio.run(twice()) == ["", ""]
    assert len(engine.asked) == 1
    now[0] += GOOD_FOR_S
    engine.status = 500
    assert asyncio.run(twice()) == ['responded with 500: {"told": 1}'] * 2
    assert len(engine.asked) == 3


def test_callers_at_the_same_time_share_one_request() -> None:
    engine = Engine()

    async def both() -> list[str]:
        engine.held = asyncio.Event()
        readiness = Readiness(engine, questions("m"))
        waiting = [asyncio.ensure_future(readiness.problem()) for _ in range(5)]
        while not engine.asked:
            await asyncio.sleep(0)
        engine.held.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(both()) == [""] * 5
    assert len(engine.asked) == 1


def test_an_engine_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "PATIENCE_S", 0.05)
    engine = Engine()

    async def ask() -> str:
        engine.held = asyncio.Event()
        return await Readiness(engine, questions("m")).problem()

    assert asyncio.run(ask()).startswith("no token within")
    assert engine.cancelled


@pytest.mark.parametrize(("path", "tokens"), [("/v1/completions", 1), ("/v1/embeddings", 0)])
def test_a_token_that_was_generated_for_it_is_counted(path: str, tokens: int) -> None:
    counted: list[None] = []
    count = counted.append
    for engine in (Engine(500, path), Engine(path=path)):
        readiness = Readiness(engine, questions("m"), generated=lambda: count(None))
        asyncio.run(readiness.problem())
    assert len(counted) == tokens
