"""Compares `raycluster batch` with `raycluster bench` at its best concurrency, in turns.

    python -m benchmarks.batch_throughput [--pairs 5] [--lines 1500]

A cluster of this machine alone serves the tiny model without a prefix cache, so that a second pass
over the file is the same work as the first. All sides send the same lines of 32 tokens' answers:

- bench: streams, at the concurrency that was the best of a sweep;
- whole: the client of batch without batch, as many at once from the first moment on;
- batch: with its defaults, the program's start and its end left out.

whole / bench is what it brings not to stream; batch / whole what pace and ledger of batch cost.
Ends with 1 when batch / bench is under 0.95, or batch / whole is under 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.figures import Limit, keep
from benchmarks.local import API, PROGRAM, Local, made_by
from raycluster.batch.job import RequestShape, to_job
from raycluster.openai_client.files import PromptFile
from raycluster.serve.asking.result import AskedLine
from raycluster.serve.asking.sender import RequestSender

NAME = "model"
SWEEP = (8, 16, 32, 64)
ARGUMENTS = (
    '{ max_model_len = 512, dtype = "bfloat16", enforce_eager = true, '
    "enable_prefix_caching = false }"
)
WORDS = 48
TOKENS = 32
URL = f"http://127.0.0.1:{API}"


def write_prompts(path: Path, lines: int) -> None:
    """Write the lines: random words, and answers of one length."""
    dice = random.Random(0)
    with path.open("w") as file:
        for number in range(lines):
            words = " ".join(f"w{dice.randrange(1000)}" for _ in range(WORDS))
            line = {"custom_id": f"c{number}", "prompt": words, "max_tokens": TOKENS}
            file.write(json.dumps(line | {"ignore_eos": True, "temperature": 0}) + "\n")


def program(*args: str | Path) -> str:
    """Run the program; return what it printed."""
    env = {**os.environ, "LANG": "C.UTF-8"}
    done = subprocess.run((PROGRAM, *args), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"raycluster {args} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


def bench(prompts: Path, concurrency: str, lines: int) -> list[float]:
    """Return the requests a second of each level."""
    what = ("bench", "--prompts", prompts, "--url", URL, "-m", NAME, "--json")
    told = json.loads(program(*what, "-c", concurrency, "-n", str(lines), "--timeout", "600"))
    if any(level["completed"] != lines for level in told["levels"]):
        raise SystemExit("bench: not all requests completed")
    return [float(level["request_throughput"]) for level in told["levels"]]


def batch(prompts: Path, lines: int) -> float:
    """Return the lines a second of a whole run, into a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        what = ("batch", prompts, "-o", Path(folder) / "out", "--url", URL, "-m", NAME, "--json")
        told = json.loads(program(*what))
    if told["ok"] != lines or told["retried"]:
        raise SystemExit(f"batch: {told}")
    return lines / float(told["seconds"])


def whole(prompts: Path, concurrency: int) -> float:
    """Return the requests a second of batch's own client at a fixed concurrency."""
    shape = RequestShape(model=NAME)
    jobs = [to_job(number, line, shape) for number, line in PromptFile.at(prompts).items()]
    return asyncio.run(_whole([job for job in jobs if isinstance(job, AskedLine)], concurrency))


async def _whole(jobs: list[AskedLine], concurrency: int) -> float:
    due = iter(jobs)

    async def slot() -> None:
        sender = RequestSender(URL, 600.0)
        for job in due:
            reply = await sender.post(job.path, job.content)
            if reply.status != 200:
                raise SystemExit(f"{reply.status}: {reply.body[:200]!r}")
        sender.close()

    began = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    return len(jobs) / (time.perf_counter() - began)


def measure(prompts: Path, lines: int, pairs: int) -> tuple[int, list[dict[str, float]]]:
    """Return the best concurrency of bench, and a row for each turn of all sides."""
    levels = bench(prompts, ",".join(map(str, SWEEP)), lines // 2)
    best = SWEEP[levels.index(max(levels))]
    print("bench, requests/s:", dict(zip(SWEEP, levels, strict=True)), "-> concurrency", best)
    sides: dict[str, Callable[[], float]] = {
        "bench": lambda: bench(prompts, str(best), lines)[0],
        "whole": lambda: whole(prompts, best),
        "batch": lambda: batch(prompts, lines),
    }
    rows = []
    for turn in range(pairs + 1):
        names = list(sides) if turn % 2 else list(reversed(sides))
        row = {name: sides[name]() for name in names}
        print("warm-up" if not turn else f"turn {turn}", row, flush=True)
        rows.append(row)
    return best, rows[1:]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lines", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts, home = Path(folder) / "prompts.jsonl", Path(folder) / "home"
        home.mkdir()
        write_prompts(prompts, options.lines)
        cluster = Local("batch", home)
        try:
            cluster.up(made_by("tiny"), ARGUMENTS)
            best, rows = measure(prompts, options.lines, options.pairs)
        finally:
            cluster.down()

    def ratio(side: str, to: str) -> float:
        return median(row[side] / row[to] for row in rows)

    print(f"whole / bench {ratio('whole', 'bench'):.3f}: not to stream")
    print(f"batch / whole {ratio('batch', 'whole'):.3f}: pace and ledger")
    print(f"batch / bench {ratio('batch', 'bench'):.3f}")
    keep(
        "batch_throughput",
        [{"best_concurrency": best, "lines": options.lines}, *rows],
        [
            Limit("bench / batch, requests/s", ratio("bench", "batch"), round(1 / 0.95, 3)),
            Limit("whole / batch, requests/s", ratio("whole", "batch"), round(1 / 0.9, 3)),
        ],
    )


if __name__ == "__main__":
    main()
