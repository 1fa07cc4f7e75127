"""Compares what the app writes with what bare `vllm serve` writes, token for token.

    python -m benchmarks.equality [--prompts 100] [--tokens 24]

Both serve the same real model with the same engine arguments; each prompt is asked of both, one at
a time, whole and as a stream, with the most probable token always taken. Ends with 1 when an
answer differs. Root is not needed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.figures import Limit, keep
from benchmarks.node import open_node
from benchmarks.serving import MODEL, ROOT, bare, deployed_app
from tests.local.cluster import made_by

PROMPTS = ROOT / "examples/prompts.jsonl"


def main() -> None:
    """Ask, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = Path(made_by("model"))
        node = stack.enter_context(open_node(folder))
        sides = {
            "bare": stack.enter_context(bare(node.python, model, folder)),
            "app": deployed_app(node, model),
        }
        rows: list[dict[str, object]] = []
        differ = tokens = 0
        for prompt in prompts(options.prompts):
            told = {
                f"{side}, {way}": ask(url, prompt, options.tokens)
                for side, url in sides.items()
                for way, ask in (("whole", whole), ("stream", streamed))
            }
            rows.append({"prompt": prompt, **told})
            differ += len({tuple(answer) for answer in told.values()}) > 1
            tokens += len(told["bare, whole"])
    print(f"{len(rows)} prompts, {tokens} tokens each way")
    keep("equality", rows, [Limit("prompts whose four answers differ", differ, 0)])


def prompts(count: int) -> list[str]:
    """Return the example prompts, then their first halves, then their first thirds."""
    whole = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    made = [text[: len(text) // part] for part in (1, 2, 3) for text in whole]
    if len(made) < count:
        raise SystemExit(f"only {len(made)} prompts can be made of {PROMPTS}")
    return made[:count]


def _body(prompt: str, tokens: int, *, stream: bool) -> dict[str, object]:
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "return_token_ids": True,
        "ignore_eos": True,  # an answer of one token would prove little
        "stream": stream,
    }


def whole(url: str, prompt: str, tokens: int) -> list[int]:
    """Return the tokens of an answer in one piece."""
    answer = httpx.post(
        f"{url}/v1/completions", json=_body(prompt, tokens, stream=False), timeout=120
    )
    [choice] = answer.raise_for_status().json()["choices"]
    return list(choice["token_ids"])


def streamed(url: str, prompt: str, tokens: int) -> list[int]:
    """Return the tokens of an answer that comes in pieces."""
    body = _body(prompt, tokens, stream=True)
    found: list[int] = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    found += choice["token_ids"] or []
    return found


if __name__ == "__main__":
    main()
