"""Whether `raycluster bench` and `vllm bench serve` say the same of one server.

    python -m benchmarks.agreement [--pairs 5] [--requests 200] [--concurrency 2]
                                   [--scripted [--first 0.025]]

A bare `vllm serve` with a tiny model, without its prefix cache, gets the same prompts from both,
taking turns (ABBA). The server has one core and the clients another, so that a client which costs
more does not slow the server down. Prints the ratios of throughput, TTFT and TPOT, and ends with 1
when a median ratio is off by more than is promised or a token is counted differently. Root is not
needed.

Where the machine's own speed changes by more than that from minute to minute, `--scripted` takes an
endpoint in the server's place whose answers take a known time: the clients then differ by what they
themselves do. It does not read prompts, so that only what comes back is counted. `--first` are the
seconds to the first token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.client import ROOT, endpoint, extras
from benchmarks.figures import Limit, keep
from benchmarks.serving import ENGINE_ARGS, MODEL, Asked, Load, bare
from benchmarks.vllm_client import VllmClient, vllm_client
from tests.local.cluster import made_by

PYTHON = f"{made_by('node-env')}/bin/python"
TOKENS = 32
FIGURES = ("request_throughput", "output_throughput", "mean_ttft_ms", "mean_tpot_ms")
COUNTS_BACK = ("completed", "total_output_tokens")
COUNTS = (*COUNTS_BACK, "total_input_tokens")
GAP_S = 0.025
THROUGHPUT, LATENCY = 0.03, 0.05


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--first", type=float, default=GAP_S)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = Path(made_by("tiny"))
        prompts = write_prompts(folder, options.requests)
        env = extras(folder)
        arguments = {**ENGINE_ARGS, "no_enable_prefix_caching": True}
        first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {first})
        if options.scripted:
            url = stack.enter_context(endpoint(TOKENS, GAP_S, options.first))
        else:
            url = stack.enter_context(bare(PYTHON, model, folder, arguments))
        os.sched_setaffinity(0, set(others or [first]))
        load = Load(options.concurrency, options.requests, seed=0)
        asked = Asked(MODEL, model)
        client = stack.enter_context(vllm_client(PYTHON, folder, env))
        sides: dict[str, Callable[[], dict[str, float]]] = {
            "raycluster": partial(ours, url, prompts, load, MODEL),
            "vllm": partial(theirs, client, vllm_words(url, prompts, load, asked)),
        }
        rows = compare(sides, options.pairs)
    keep("agreement", rows, limits(rows, COUNTS_BACK if options.scripted else COUNTS))


def compare(
    sides: Mapping[str, Callable[[], dict[str, float]]], pairs: int
) -> list[dict[str, object]]:
    """Let them take turns (ABBA); return the figures."""
    for side in sides.values():
        side()  # the server's first answers are slower
    rows: list[dict[str, object]] = []
    for pair in range(pairs):
        for name in list(sides) if pair % 2 == 0 else list(sides)[::-1]:
            row = {"pair": pair, "side": name, **sides[name]()}
            print(row, flush=True)
            rows.append(row)
    return rows


def write_prompts(folder: Path, count: int) -> Path:
    """Write prompts of several lengths."""
    path = folder / "prompts.jsonl"
    lines = [
        {"prompt": f"{number} " + "one and one is two. " * (number % 7), "temperature": 0}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ours(url: str, prompts: Path, load: Load, model: str) -> dict[str, float]:
    """Run our client; return its figures under vLLM's names."""
    command = [
        *(str(ROOT / ".venv/bin/raycluster"), "bench", f"--url={url}", f"--model={model}"),
        *(
            f"--prompts={prompts}",
            f"-n{load.count}",
            f"-c{load.concurrency}",
            f"--max-tokens={TOKENS}",
        ),
        *("--ignore-eos", "--json", "--no-calibrate"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    (level,) = json.loads(done.stdout)["levels"]
    plain = {name: level[name] for name in (*FIGURES[:2], *COUNTS)}
    return {
        **plain,
        "mean_ttft_ms": level["ttft_ms"]["mean"],
        "mean_tpot_ms": level["tpot_ms"]["mean"],
    }


def vllm_words(url: str, prompts: Path, load: Load, asked: Asked) -> list[str]:
    """Return the options of vLLM's client for the same load."""
    return [
        *("--backend=openai-chat", f"--base-url={url}", "--endpoint=/v1/chat/completions"),
        *(f"--model={asked.name}", f"--tokenizer={asked.folder}", "--dataset-name=custom"),
        *(f"--dataset-path={prompts}", "--skip-chat-template", f"--custom-output-len={TOKENS}"),
        *(f"--num-prompts={load.count}", f"--max-concurrency={load.concurrency}", "--ignore-eos"),
        *(
            f"--num-warmups={load.concurrency}",
            "--temperature=0",
            "--disable-shuffle",
            "--disable-tqdm",
        ),
    ]


def theirs(client: VllmClient, words: Sequence[str]) -> dict[str, float]:
    """Run vLLM's client; return its figures."""
    client.run([*words, "--save-result", f"--result-filename={client.result}"])
    figures = json.loads(client.result.read_text())
    return {name: float(figures[name]) for name in (*FIGURES, *COUNTS)}


def limits(rows: Sequence[Mapping[str, object]], counts: Sequence[str]) -> list[Limit]:
    """Return what is promised of the ratios' medians, and of the counts."""

    def figures(side: str, name: str) -> list[float]:
        return [float(str(row[name])) for row in rows if row["side"] == side]

    made = []
    for name in FIGURES:
        pairs = zip(figures("raycluster", name), figures("vllm", name), strict=True)
        ratios = [one / other for one, other in pairs]
        print(
            f"{name}: raycluster / vllm {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )
        most = THROUGHPUT if "throughput" in name else LATENCY
        made.append(Limit(f"{name}: median ratio off by", abs(median(ratios) - 1), most))
    for name in counts:
        values = {*figures("raycluster", name), *figures("vllm", name)}
        made.append(Limit(f"{name}: different values", len(values), 1))
    return made


if __name__ == "__main__":
    main()
