"""Sends the app what schemathesis makes of its OpenAPI document, and counts the answers.

    python -m benchmarks.openapi [--seconds 420] [--phases fuzzing]

Bodies that the document allows and bodies that it does not go to every path, for so many seconds;
each request that the app answers with 500 or more is sent to bare `vllm serve` too. Ends with 1
when the app answered one with 500 or more, but 501 (Not Implemented), or differently from bare
vLLM, or when nothing got a good answer. Root is not needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks import serving
from benchmarks.figures import Limit, keep
from benchmarks.node import open_node

FUZZER = "schemathesis==4.32.5"
SEED = 1
SERVER_ERROR, NOT_IMPLEMENTED = 500, 501
ENGINE_ARGS = {**serving.ENGINE_ARGS, "max_model_len": 64}
"""Short answers, for many of them."""


def main() -> None:
    """Ask, count, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=420)
    parser.add_argument("--phases", default="examples,coverage,fuzzing", help="schemathesis's own")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = serving.tiny_model(folder)
        node = stack.enter_context(open_node(folder))
        url = serving.deployed_app(node, model, ENGINE_ARGS)
        asked = ask(url, folder, options)
        alive = serving.answers(url)
        errors = [entry for entry in asked if entry["status"] >= SERVER_ERROR]
        if errors:
            bare = stack.enter_context(serving.bare(node.python, model, folder, ENGINE_ARGS))
            errors = [{**entry, "bare": again(bare, entry)} for entry in errors]
    statuses = Counter(entry["status"] for entry in asked)
    paths = Counter(f"{entry['method']} {entry['path']}" for entry in asked)
    print(
        f"{len(asked)} requests to {len(paths)} paths and methods: {dict(sorted(statuses.items()))}"
    )
    for what, count in Counter((e["path"], e["status"], e["bare"]) for e in errors).items():
        print("path {}, status {}, bare vLLM's {}".format(*what), f"{count} times", sep=": ")
    counted = {"statuses": dict(statuses), "operations": dict(paths)}
    own = [entry for entry in errors if entry["status"] != NOT_IMPLEMENTED]
    keep(
        "openapi",
        [counted, *errors],
        [
            Limit("answers of 500 and more, but 501", len(own), 0),
            Limit(
                "those that differ from vLLM's", sum(e["status"] != e["bare"] for e in errors), 0
            ),
            Limit("no good answer", int(not statuses[200]), 0),
            Limit("no completion afterwards", int(not alive), 0),
        ],
    )


def ask(url: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Send everything; return method, path and body of each request, and status and answer."""
    report = folder / "asked.har"
    done = subprocess.run(
        [
            *(serving.ROOT / ".venv/bin/uv", "tool", "run", "--quiet", "--from", FUZZER),
            *("schemathesis", "run", f"{url}/openapi.json", "--url", url),
            *("--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink"),
            *("--phases", options.phases, "--max-time", str(options.seconds)),
            *("--seed", str(SEED), "--request-timeout", "60", "--workers", "2"),
            *("--suppress-health-check", "all"),
            *("--report", "har", "--report-har-path", report),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:])
    if not report.exists():
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return [
        {
            "method": entry["request"]["method"],
            "path": urlsplit(entry["request"]["url"]).path,
            "query": urlsplit(entry["request"]["url"]).query,
            "type": entry["request"].get("postData", {}).get("mimeType", ""),
            "body": entry["request"].get("postData", {}).get("text", ""),
            "status": entry["response"]["status"],
            "answer": entry["response"]["content"].get("text", "")[:300],
        }
        for entry in json.loads(report.read_text())["log"]["entries"]
    ]


def again(url: str, entry: dict[str, Any]) -> int:
    """Send a request once more, to another server; return the status."""
    where = f"{url}{entry['path']}?{entry['query']}"
    headers = {"Content-Type": entry["type"]} if entry["type"] else {}
    content = entry["body"].encode()
    return httpx.request(
        entry["method"], where, content=content, headers=headers, timeout=60
    ).status_code


if __name__ == "__main__":
    main()
