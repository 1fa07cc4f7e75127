"""The transformers engine alone, at a port: what a replica serves with it, without Ray.

    python -m tests.node.fallback_server PORT MODEL ENGINE_ARGS

Prints "ready" when it answers. `/counts` tells the tokens that were counted, of prompts and
generated, and how many requests transformers has.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvicorn

from raycluster.serve.engines.transformers import TransformersEngine
from raycluster.serve.settings import ModelSettings


async def main(port: int, model: str, args: dict[str, Any]) -> None:
    """Serve until the process is ended."""
    counted = [0, 0]

    def count(prompt: int, generated: int) -> None:
        counted[0] += prompt
        counted[1] += generated

    settings = ModelSettings("fallback", model, engine="transformers", engine_args=args)
    engine = TransformersEngine()
    app = await engine.start(settings, count)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/counts":
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        batching: Any = engine._generator._runner  # type: ignore[union-attr]
        scheduler = batching._manager.batch_processor.scheduler
        now = len(scheduler.active_requests) + len(scheduler.waiting_requests)
        body = json.dumps([*counted, now]).encode()
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(serve, port=port, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
