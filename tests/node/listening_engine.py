"""Start an engine and print at which address each port of this network is listened, and by what.

For the Python of the nodes: MODEL SETTINGS-AS-JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from raycluster.serve.engines.server import Place
from raycluster.serve.engines.vllm import Share, VllmEngine
from raycluster.serve.settings import ModelSettings


async def _print_listening(model: str, told: dict[str, Any]) -> None:
    settings = ModelSettings("tiny", model, engine="vllm", **told)
    engine = VllmEngine(Place("127.0.0.1", 8000))
    if settings.spread:
        share = Share(0, 2, os.environ["RAYCLUSTER_ADDRESS"], 8001)
        other = VllmEngine(Place("", 0)).serve_part(settings, share.of_rank(1))
        beside = asyncio.ensure_future(other)
        await engine.serve(settings, share)
        assert not beside.done()
    else:
        await engine.serve(settings)
    asked = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True)
    rows = [line.split() for line in asked.stdout.splitlines()]
    print(json.dumps([(row[3].rpartition(":")[0], row[-1]) for row in rows]), flush=True)
    os._exit(0)  # all else ends with the namespace


if __name__ == "__main__":
    asyncio.run(_print_listening(sys.argv[1], json.loads(sys.argv[2])))
