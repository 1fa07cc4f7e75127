"""Tokens per second of the transformers engine, as it is and as it was before it batched.

    python -m benchmarks.fallback [--before REVISION] [--rounds 3] [--tokens 48]

Both serve the same model (SmolLM2-135M) without Ray, and are asked in turns by 1, 4 and 16 clients
at once, who sample with parameters of their own; the one that is not asked waits. Ends with 1 when
16 clients do not get three times the tokens that they got before. Two cores and 3 GB of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.figures import Limit, keep
from tests.local.cluster import ROOT, made_by
from tests.ports import free_ports

BEFORE = "4efbb2b"
CLIENTS = (1, 4, 16)
LEAST = 3.0


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the revision to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-")))
        sources = {"before": checked_out(options.before, folder), "now": ROOT / "src"}
        urls = {name: stack.enter_context(serve(source)) for name, source in sources.items()}
        for url in urls.values():
            asyncio.run(ask(url, 2, 8))
        for number in range(options.rounds):
            for clients in CLIENTS:
                for name in sorted(urls, reverse=bool(number % 2)):
                    speed = asyncio.run(ask(urls[name], clients, options.tokens))
                    row = {"round": number, "engine": name, "clients": clients, "tokens_s": speed}
                    print(row, flush=True)
                    rows.append(row)
    keep("fallback", rows, [Limit("tokens/s of 16, before / now", ratio(rows), 1 / LEAST)])


def ratio(rows: list[dict[str, object]]) -> float:
    """Return the median of before over that of now, with the most clients."""
    of = {
        name: median(
            float(str(row["tokens_s"]))
            for row in rows
            if (row["engine"], row["clients"]) == (name, CLIENTS[-1])
        )
        for name in ("before", "now")
    }
    return of["before"] / of["now"]


def checked_out(revision: str, folder: Path) -> Path:
    """Return the source of an older revision."""
    archive = subprocess.run(
        ["git", "archive", revision, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder / "src"


@contextmanager
def serve(source: Path) -> Iterator[str]:
    """Serve the model with the engine of this source; yields the URL."""
    (port,) = free_ports(1)
    python = f"{made_by('node-env')}/bin/python"
    args = json.dumps({"max_model_len": 1024})
    words = ("-m", "tests.node.fallback_server", str(port), made_by("model"), args)
    env = {**os.environ, "PYTHONPATH": f"{source}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen([python, *words], cwd=source, env=env, stdout=pipe) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise SystemExit("the engine has not started")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def ask(url: str, clients: int, tokens: int) -> float:
    """Have so many clients ask at once; return the tokens per second of all."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:

        async def one(number: int) -> int:
            body = {"prompt": f"Story {number}: once upon a time there was", "ignore_eos": True}
            own = {"temperature": 0.5 + 0.05 * number, "top_p": 0.9, "seed": number}
            answer = await http.post("/v1/completions", json={**body, **own, "max_tokens": tokens})
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        began = time.perf_counter()
        made = sum(await asyncio.gather(*map(one, range(clients))))
        return made / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
