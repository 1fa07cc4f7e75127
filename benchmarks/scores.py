"""Scores the app and bare `vllm serve` with lm-evaluation-harness, on a task that needs no network.

    python -m benchmarks.scores [--countries 100]

The task is made of the capitals that the package `countryinfo` ships: of four cities, which is the
likeliest to follow "The capital of X is"? Both serve the same real model with the same engine
arguments and are asked through `local-completions`. Ends with 1 when a score differs, or when more
than 1 in 100 answers does. Root is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Limit, keep
from benchmarks.node import Node, open_node
from benchmarks.serving import MODEL, ROOT, bare, deployed_app
from tests.local.cluster import made_by

HARNESS = ("lm_eval[api]==0.4.13", "countryinfo==1.0.1", "setuptools<81")
FROM_NODE = ("torch", "transformers", "accelerate", "peft", "numpy")
"""What the node's environment has already; the harness would bring another one."""
TASK = "capitals"
CAPITALS = """\
import json
from pathlib import Path
import countryinfo
found = {}
for file in sorted(Path(countryinfo.__file__).parent.glob("data/*.json")):
    told = json.loads(file.read_text())
    if isinstance(told.get("capital"), str) and told["capital"] and told.get("name"):
        found[told["name"]] = told["capital"]
print(json.dumps(found))
"""


def main() -> None:
    """Score both, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--countries", type=int, default=100)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = Path(made_by("model"))
        node = stack.enter_context(open_node(folder))
        env = harness(node)
        write_task(node, env, options.countries)
        sides = {
            "bare": stack.enter_context(bare(node.python, model, folder)),
            "app": deployed_app(node, model),
        }
        told = {side: score(node, env, url, model) for side, url in sides.items()}
    rows = [{"side": side, "scores": found["results"][TASK]} for side, found in told.items()]
    picks = {side: choices(found) for side, found in told.items()}
    differ = sum(picks["bare"][at] != picks["app"][at] for at in picks["bare"])
    for row in rows:
        print(row)
    print(f"{len(picks['bare'])} questions")
    accuracy = [found["results"][TASK]["acc,none"] for found in told.values()]
    keep(
        "scores",
        [*rows, {"questions": len(picks["bare"]), "answers_that_differ": differ}],
        [
            Limit("difference of the scores", abs(accuracy[0] - accuracy[1]), 0),
            Limit("answers that differ", differ, len(picks["bare"]) // 100),
        ],
    )


def harness(node: Node) -> Mapping[str, str]:
    """Install the harness beside the node's environment; return the variables that it needs."""
    folder = node.folder / "harness"
    unwanted = node.folder / "unwanted.txt"
    unwanted.write_text("".join(f"{name}; python_version < '3'\n" for name in FROM_NODE))
    uv = (ROOT / ".venv/bin/uv", "pip", "install", "--quiet", "--python", node.python)
    subprocess.run([*uv, "--target", folder, "--override", unwanted, *HARNESS], check=True)
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(node.folder / "hub"),
        "OPENAI_API_KEY": "none",
    }


def write_task(node: Node, env: Mapping[str, str], countries: int) -> None:
    """Write the questions and the task's description, the same at each run."""
    said = subprocess.run(
        [node.python, "-c", CAPITALS], env=env, capture_output=True, text=True, check=True
    )
    capitals: dict[str, str] = json.loads(said.stdout)
    chance = random.Random(0)  # the same questions each time
    names = chance.sample(sorted(capitals), min(countries, len(capitals)))
    lines = []
    for name in names:
        others = chance.sample(sorted(set(capitals.values()) - {capitals[name]}), 3)
        places = chance.sample([capitals[name], *others], 4)
        answer = places.index(capitals[name])
        lines.append(json.dumps({"country": name, "places": places, "answer": answer}))
    folder = node.folder / "task"
    folder.mkdir()
    (folder / "capitals.jsonl").write_text("\n".join(lines) + "\n")
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "capitals.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "The capital of {{country}} is",
        "doc_to_choice": "{{places}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    (folder / "capitals.yaml").write_text(json.dumps(task))  # JSON is YAML


def score(node: Node, env: Mapping[str, str], url: str, model: Path) -> dict[str, Any]:
    """Run the harness once; return what it writes, and its samples under `samples`."""
    out = node.folder / f"scores-{url.rpartition(':')[2]}"
    arguments = {
        "model": MODEL,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(model),
        "num_concurrent": 8,
        "tokenized_requests": False,
    }
    done = subprocess.run(
        [
            *(node.python, "-m", "lm_eval", "--model", "local-completions", "--tasks", TASK),
            *("--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
            *("--include_path", str(node.folder / "task"), "--output_path", str(out)),
            *("--log_samples", "--batch_size", "1"),
        ],
        env=env,
        cwd=node.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    [results] = out.rglob("results_*.json")
    [samples] = out.rglob("samples_*.jsonl")
    found: dict[str, Any] = json.loads(results.read_text())
    found["samples"] = [json.loads(line) for line in samples.read_text().splitlines()]
    return found


def choices(found: Mapping[str, Any]) -> dict[int, int]:
    """Return, by question, which of the places was held for the likeliest."""
    picked: dict[int, int] = {}
    for sample in found["samples"]:
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
        picked[sample["doc_id"]] = likelihoods.index(max(likelihoods))
    return picked


if __name__ == "__main__":
    main()
