"""What one GPU serves of a model of Qwen2.5-0.5B's shape: the app, and bare `vllm serve`.

    python -m benchmarks.gpu [--part load|compare]

$RAYCLUSTER_NODE_ENV is an environment with Ray and vLLM's CUDA build. First our client asks the
app, with one replica and with several that share the GPU, 64 at a time, while `nvidia-smi` is asked
once a second. Then vLLM's own client asks the app and bare `vllm serve`, both on the GPU at the
same time, taking turns, and last our client and vLLM's ask the bare one, taking turns. Ends with 1
when a limit is missed. Weights are random; root is not needed. `--rehearse` does it with a tiny
model and no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import agreement, serving
from benchmarks.figures import Limit, keep
from benchmarks.local import API, ROOT, Local, made_by
from benchmarks.memory import processes
from benchmarks.serving import Asked, Load
from benchmarks.smi import watched
from benchmarks.vllm_client import VllmClient, vllm_client

NAME = "gpu"
MODEL = "model"
ARGUMENTS: dict[str, object] = {
    "max_model_len": 2048,
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.2,
    "kv_cache_memory_bytes": 6 * 2**30,  # said, so that engines may start beside each other
}
ON_CPU: dict[str, object] = serving.ENGINE_ARGS
CONCURRENCY = 64
PROMPT, OUTPUT = 64, 32
PROMPTS_PER_S, P95_S, BUSY_PERCENT, HOST_MB = 1000, 3.0, 70.0, 2000


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("load", "compare"), help="default: both")
    parser.add_argument("--requests", type=int, default=8192, help="at concurrency 64")
    parser.add_argument("--rounds", type=int, default=2, help="of the app and bare vLLM")
    parser.add_argument("--prompts", type=int, default=2048, help="at concurrency 32 and 128")
    parser.add_argument("--pairs", type=int, default=5, help="of our client and vLLM's")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="more, as JSON")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    limits: list[Limit] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        with step("model"):
            model = made(folder, options.rehearse)
        arguments = (ON_CPU if options.rehearse else ARGUMENTS) | options.engine_args
        served = Served(Local(NAME, folder), model, arguments, 0 if options.rehearse else 1)
        for name, part in {"load": loaded, "compare": compared}.items():
            if options.part in {None, name}:
                more, kept = part(served, options)
                rows += more
                limits += kept
    keep(NAME, rows, limits)


@dataclass(frozen=True)
class Served:
    """A model of this machine's cluster, and what its engine is told."""

    cluster: Local
    folder: Path
    arguments: Mapping[str, object]
    gpus: int

    @contextmanager
    def up(self) -> Iterator[Callable[..., object]]:
        """Serve it; yield what changes the number of replicas."""
        change = partial(self.cluster.up, str(self.folder), toml(self.arguments), gpus=self.gpus)
        try:
            with step("up"):
                print(json.dumps(change())[-1500:])
            yield change
        finally:
            self.cluster.down()


def loaded(
    served: Served, options: argparse.Namespace
) -> tuple[list[dict[str, object]], list[Limit]]:
    """Load the app with one replica and with several; return figures and limits."""
    rows: list[dict[str, object]] = []
    memory: list[dict[str, object]] = []
    with served.up() as change:
        for replicas in (1, 4 if served.gpus else 2):
            with step(f"replicas: {replicas}"):
                if replicas > 1:
                    change(replicas=replicas)
                for endpoint in ("completions", "chat"):
                    rows.append({"replicas": replicas, **load(served, endpoint, options.requests)})
                print(served.cluster.run("status", served.cluster.spec), flush=True)
            memory = memory or list(processes(NAME))
        status = json.loads(served.cluster.run("status", served.cluster.spec, "--json"))
    return [*rows, *memory, {"status": status}], promised(rows, memory, served.gpus)


def compared(
    served: Served, options: argparse.Namespace
) -> tuple[list[dict[str, object]], list[Limit]]:
    """Compare the app with bare vLLM, and our client with vLLM's; return figures and limits."""
    python = f"{made_by('node-env')}/bin/python"
    folder = served.cluster.home
    named = {**served.arguments, "served_model_name": MODEL}
    env = {} if served.gpus else serving.ENGINE_ENV
    asked = Asked(MODEL, served.folder)
    with ExitStack() as stack:
        client = stack.enter_context(vllm_client(python, folder))
        with step("bare vllm serve"):
            url = stack.enter_context(serving.bare(python, served.folder, folder, named, env))
        stack.enter_context(served.up())
        with step("app and bare"):
            sides = {"bare": url, "app": f"http://127.0.0.1:{API}"}
            rows = serving.measure(
                client, sides, asked, serving.Plan(options.rounds, options.prompts)
            )
        with step("the two clients"):
            pairs = agree(client, url, asked, options.pairs)
    limits = serving.limits(rows, others=("app",))
    return [*rows, *pairs], [*limits, *agreement.limits(pairs, agreement.COUNTS)]


def made(folder: Path, rehearse: bool) -> Path:
    """Make the model; return its folder."""
    if rehearse:
        return serving.tiny_model(folder)
    model = folder / "model"
    python = f"{made_by('node-env')}/bin/python"
    subprocess.run([python, ROOT / "scripts/save_qwen.py", made_by("model"), model], check=True)
    return model


def toml(value: object) -> str:
    """Return the value as TOML in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print how long it took."""
    begun = time.monotonic()
    yield
    print(f"== {what}: {time.monotonic() - begun:.0f} s", flush=True)


def agree(client: VllmClient, url: str, asked: Asked, pairs: int) -> list[dict[str, object]]:
    """Let our client and vLLM's ask the same server, taking turns."""
    some = Load(concurrency=8, count=400, seed=0)
    prompts = agreement.write_prompts(client.folder, some.count)
    words = agreement.vllm_words(url, prompts, some, asked)
    return agreement.compare(
        {
            "raycluster": partial(agreement.ours, url, prompts, some, asked.name),
            "vllm": partial(agreement.theirs, client, words),
        },
        pairs,
    )


def load(served: Served, endpoint: str, requests: int) -> dict[str, object]:
    """Load the app with our client; return its figures with those of the GPU."""
    cluster = served.cluster
    with watched() as smi:
        said = cluster.run(
            *("bench", "--spec", cluster.spec, "--synthetic", f"prompt={PROMPT},output={OUTPUT}"),
            *("-n", str(requests), "-c", str(CONCURRENCY), "--ignore-eos"),
            *("--endpoint", endpoint, "--processes", str(min(4, os.cpu_count() or 1)), "--json"),
        )
    summary = json.loads(said)
    (level,) = summary["levels"]
    row = {
        "endpoint": endpoint,
        "requests_per_s": level["request_throughput"],
        "e2el_p95_ms": level["e2el_ms"]["p95"],
        "ttft_p95_ms": level["ttft_ms"]["p95"],
        "failed": level["failed"],
    }
    print(row, flush=True)
    return {**row, "smi": smi, "summary": summary}


def promised(
    rows: list[dict[str, object]], memory: list[dict[str, object]], gpus: int
) -> list[Limit]:
    """Return what is promised of the GPU, and of the host's memory."""
    made = []
    for row in rows if gpus else ():
        what = f"{row['replicas']} replicas, {row['endpoint']}"
        lines = [line.split(",") for line in list(row["smi"])[1:]]  # type: ignore[call-overload]
        busy = median(float(words[1]) for words in lines)
        rate, p95 = float(str(row["requests_per_s"])), float(str(row["e2el_p95_ms"])) / 1e3
        print(f"{what}: {rate:.0f} requests/s, p95 {p95:.3f} s, GPU busy {busy:.0f}%")
        made += [
            Limit(f"{what}: {PROMPTS_PER_S} / requests/s", PROMPTS_PER_S / rate, 1),
            Limit(f"{what}: p95, s", p95, P95_S),
            Limit(f"{what}: GPU idle, %", 100 - busy, 100 - BUSY_PERCENT),
        ]
    total = sum(float(str(row["pss"])) for row in memory if row["kind"] != "other")
    return [*made, Limit("replica and engine, host memory, MB", total, HOST_MB)]


if __name__ == "__main__":
    main()
