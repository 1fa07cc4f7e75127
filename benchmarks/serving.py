"""Times the app against bare `vllm serve` and `ray.serve.llm` on one machine, taking turns.

    python -m benchmarks.serving [--rounds 3] [--prompts 512] [--concurrency 1,32,128]

All three serve the same tiny model with the same engine arguments at the same time, under one Ray;
only one is asked at a time, by vLLM's own `vllm bench serve`: 64 tokens in, 32 out. Each round goes
through the three and back again. A pass of a side is held against the pass of bare vLLM next to it,
and what is said is the geometric mean of these ratios: a machine that others slow down for minutes
slows both. Ends with 1 when a limit is missed. Root is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import geometric_mean, median, stdev
from typing import Any

import httpx

from benchmarks.cold_up import VLLM
from benchmarks.figures import Limit, keep
from benchmarks.node import Node, open_node, until
from benchmarks.vllm_client import VllmClient, vllm_client
from raycluster.serve.settings import ModelSettings, applications
from tests.local.cluster import made_by
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
MODEL = "tiny"
ENGINE_ARGS: dict[str, object] = {"max_model_len": 1024, "enforce_eager": True, "dtype": "bfloat16"}
ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}
"""What the app tells vLLM on a CPU by itself; told to the others too, for a fair comparison."""

LLM_APP = "ray.serve.llm:build_openai_app"
LLM_EXTRAS = ("pyarrow", "jsonref")
CONCURRENCY = (1, 32, 128)
FIGURES = (
    *("request_throughput", "output_throughput", "mean_ttft_ms", "median_ttft_ms"),
    *("p99_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms"),
)


@dataclass(frozen=True)
class Load:
    """What the client sends: so many requests, so many at once; `seed` makes the prompts."""

    concurrency: int
    count: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """A model by its name, and the folder with its tokenizer."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Plan:
    """How often each side is asked there and back, with how many prompts where more than one
    request is under way, and how many are."""

    rounds: int
    prompts: int
    concurrency: Sequence[int] = CONCURRENCY


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=512, help="at concurrency 32 and 128")
    parser.add_argument("--concurrency", type=levels, default=CONCURRENCY)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = tiny_model(folder)
        node = stack.enter_context(open_node(folder))
        sides = {
            "bare": stack.enter_context(bare(node.python, model, folder)),
            **deployed(node, model),
        }
        client = stack.enter_context(vllm_client(node.python, folder))
        rows = measure(client, sides, Asked(MODEL, model), Plan(**vars(options)))
    keep("serving", rows, limits(rows))


def levels(text: str) -> tuple[int, ...]:
    """Return the numbers in "1,32"."""
    return tuple(map(int, text.split(",")))


def tiny_model(folder: Path) -> Path:
    """Make the model; return its folder."""
    target = folder / "model"
    node, source = made_by("node-env"), made_by("model")
    subprocess.run(
        [f"{node}/bin/python", ROOT / "scripts/save_tiny.py", source, target], check=True
    )
    return target


@contextmanager
def bare(
    python: str,
    model: Path,
    folder: Path,
    arguments: Mapping[str, object] = ENGINE_ARGS,
    env: Mapping[str, str] = ENGINE_ENV,
) -> Iterator[str]:
    """Run `vllm serve`; yield its URL."""
    port = free_ports(1)[0]
    words = [f"--{key.replace('_', '-')}={value}" for key, value in arguments.items()]
    words = [word.removesuffix("=True") for word in words]
    command = ["serve", str(model), f"--served-model-name={MODEL}", f"--port={port}", *words]
    with (folder / "bare.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-c", VLLM, *command, "--host=127.0.0.1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        name = str(arguments.get("served_model_name", MODEL))
        until(
            lambda: ended(process, log.name) or answers(url, name),
            seconds=300,
            what="no vllm serve",
        )
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ended(process: subprocess.Popen[bytes], log: str) -> bool:
    """End this program, with the end of its log, when the process has ended; else return False."""
    if process.poll() is not None:
        raise SystemExit(
            f"vllm serve ended with {process.poll()}:\n{Path(log).read_text()[-6000:]}"
        )
    return False


def deployed_app(node: Node, model: Path, arguments: Mapping[str, object] = ENGINE_ARGS) -> str:
    """Deploy the app alone; return its URL."""
    node.put(_application(node, model, arguments))
    until(node.running, seconds=300, what="the application does not run")
    until(partial(answers, node.http), seconds=60, what=f"no answer from {node.http}")
    return node.http


def _application(node: Node, model: Path, arguments: Mapping[str, object]) -> dict[str, Any]:
    settings = ModelSettings(MODEL, str(model), engine_args=arguments)
    return applications(
        [settings], fingerprint="bench", code_path=str(node.folder / "code"), port=node.http_port
    )


def deployed(node: Node, model: Path) -> dict[str, str]:
    """Deploy the app and `ray.serve.llm` beside each other; return their URLs."""
    body = _application(node, model, ENGINE_ARGS)
    body["applications"][0]["route_prefix"] = "/app"
    extras = {"PYTHONPATH": str(llm_extras(node))}
    theirs = {
        "model_loading_config": {"model_id": MODEL, "model_source": str(model)},
        "engine_kwargs": ENGINE_ARGS,
        "accelerator_config": {"kind": "cpu"},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
        "runtime_env": {"env_vars": {**ENGINE_ENV, **extras}},
    }
    body["applications"].append(
        {
            "name": "llm",
            "route_prefix": "/llm",
            "import_path": LLM_APP,
            "runtime_env": {"env_vars": extras},
            "args": {"llm_configs": [theirs]},
        }
    )
    node.put(body)
    until(node.running, seconds=300, what="the applications do not run")
    urls = {"app": f"{node.http}/app", "ray.serve.llm": f"{node.http}/llm"}
    for url in urls.values():
        until(partial(answers, url), seconds=60, what=f"no answer from {url}")
    return urls


def llm_extras(node: Node) -> Path:
    """Install what `ray.serve.llm` imports beside Ray and vLLM; return the folder."""
    folder = node.folder / "llm"
    uv = (ROOT / ".venv/bin/uv", "pip", "install", "--quiet", "--no-deps")
    subprocess.run([*uv, "--python", node.python, "--target", folder, *LLM_EXTRAS], check=True)
    return folder


def answers(url: str, name: str = MODEL) -> bool:
    """Tell whether a completion comes back."""
    body = {"model": name, "prompt": "a b c", "max_tokens": 2}
    try:
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def measure(
    client: VllmClient, sides: Mapping[str, str], asked: Asked, plan: Plan
) -> list[dict[str, object]]:
    """Ask all sides, there and back again, `rounds` times at each concurrency."""
    rows: list[dict[str, object]] = []
    names = list(sides)
    for concurrency in plan.concurrency:
        count = plan.prompts if concurrency > 1 else 64
        for turn in range(plan.rounds):
            for place, name in enumerate([*names, *reversed(names)]):
                seed = 2 * turn + place // len(names)  # new prompts for each pass, alike for all
                load = Load(concurrency, count, seed)
                figures = bench(client, sides[name], asked, load)
                row = {"side": name, "round": turn, "concurrency": concurrency, **figures}
                print(
                    {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()},
                    flush=True,
                )
                rows.append(row)
    return rows


def bench(client: VllmClient, url: str, asked: Asked, load: Load) -> dict[str, float]:
    """Run vLLM's own client once; return its figures."""
    client.run(
        [
            *("--backend=openai", f"--base-url={url}", "--endpoint=/v1/completions"),
            *(f"--model={asked.name}", f"--tokenizer={asked.folder}", "--ignore-eos"),
            *("--dataset-name=random", "--random-input-len=64", "--random-output-len=32"),
            *(f"--num-prompts={load.count}", f"--max-concurrency={load.concurrency}"),
            *("--num-warmups=16", f"--seed={load.seed}", "--disable-tqdm"),
            *("--save-result", f"--result-filename={client.result}"),
        ]
    )
    figures = json.loads(client.result.read_text())
    if figures["completed"] != load.count:
        raise SystemExit(f"{url}: {figures['completed']} of {load.count} requests completed")
    return {name: float(figures[name]) for name in FIGURES}


def limits(
    rows: Sequence[Mapping[str, object]], others: Sequence[str] = ("app", "ray.serve.llm")
) -> list[Limit]:
    """Return what is promised, of the concurrencies that were measured."""

    def passes(side: str, concurrency: int, name: str) -> list[float]:
        found = [r[name] for r in rows if r["side"] == side and r["concurrency"] == concurrency]
        return [float(str(value)) for value in found]

    def pairs(side: str, concurrency: int, name: str) -> list[tuple[float, float]]:
        both = (passes(which, concurrency, name) for which in (side, "bare"))
        return list(zip(*both, strict=True))

    def ratio(side: str, concurrency: int, name: str) -> float:
        return geometric_mean(ours / bare for ours, bare in pairs(side, concurrency, name))

    measured = sorted({int(str(row["concurrency"])) for row in rows})
    for concurrency in measured:
        for side in others:
            ratios = [ours / bare for ours, bare in pairs(side, concurrency, "request_throughput")]
            # Of the mean; a single pass says little on a machine that is not ours alone.
            error = stdev(ratios) / sqrt(len(ratios))
            said = f"{geometric_mean(ratios):.3f}, standard error {error:.3f}"
            print(f"{side} / bare, requests/s at {concurrency}, {len(ratios)} pairs: {said}")
    throughputs = [
        Limit(
            f"bare / app, requests/s at {concurrency}",
            1 / ratio("app", concurrency, "request_throughput"),
            round(1 / 0.95, 3),
        )
        for concurrency in measured
        if concurrency > 1
    ]
    if 1 not in measured:
        return throughputs
    delay = median(ours - bare for ours, bare in pairs("app", 1, "median_ttft_ms"))
    return [
        *throughputs,
        Limit("app - bare, median TTFT at 1, ms", delay, 2.0),
        Limit("app / bare, median TPOT at 1", ratio("app", 1, "median_tpot_ms"), 1.05),
    ]


if __name__ == "__main__":
    main()
