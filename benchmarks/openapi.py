"""Sends the app and bare `vllm serve` what schemathesis makes of their own OpenAPI documents.

    python -m benchmarks.openapi [--examples 20]

Bodies that the document allows, and bodies that it does not, to every path. Prints how many answers
of each status each side gave. Ends with 1 when the app answered anything with 500 or more. Root is
not needed.
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

from benchmarks.figures import Limit, keep
from benchmarks.node import open_node
from benchmarks.serving import ROOT, bare, deployed_app, tiny_model

FUZZER = "schemathesis==4.32.5"
SEED = 1


def main() -> None:
    """Ask both, count, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=20, help="at most, for each path and kind")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        model = tiny_model(folder)
        node = stack.enter_context(open_node(folder))
        sides = {
            "app": deployed_app(node, model),
            "bare": stack.enter_context(bare(node.python, model, folder)),
        }
        found = {side: ask(url, folder, options.examples) for side, url in sides.items()}
    rows: list[dict[str, Any]] = []
    for side, entries in found.items():
        statuses = Counter(entry["status"] for entry in entries)
        paths = {entry["path"] for entry in entries}
        print(f"{side}: {len(entries)} requests to {len(paths)} paths: {dict(statuses)}")
        rows.append({"side": side, "paths": sorted(paths), "statuses": dict(statuses)})
    errors = {side: [e for e in entries if e["status"] >= 500] for side, entries in found.items()}
    for side, entries in errors.items():
        rows += [{"side": side, **entry} for entry in entries]
        for entry in entries[:10]:
            print(side, json.dumps(entry)[:400])
    few = sum(entry["status"] < 300 for entry in found["app"]) == 0
    keep(
        "openapi",
        rows,
        [
            Limit("answers of 500 and more", len(errors["app"]), 0),
            Limit("runs without a good answer", int(few), 0),
        ],
    )


def ask(url: str, folder: Path, examples: int) -> list[dict[str, Any]]:
    """Send everything; return method, path and body of each request, and status and answer."""
    report = folder / f"asked-{urlsplit(url).port}.har"
    done = subprocess.run(
        [
            *(ROOT / ".venv/bin/uv", "tool", "run", "--quiet", "--from", FUZZER),
            *("schemathesis", "run", f"{url}/openapi.json", "--url", url),
            *("--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink"),
            *("--phases", "examples,coverage,fuzzing", "--seed", str(SEED)),
            *("--max-examples", str(examples), "--request-timeout", "120"),
            *("--report", "har", "--report-har-path", report),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    entries = json.loads(report.read_text())["log"]["entries"]
    return [
        {
            "method": entry["request"]["method"],
            "path": urlsplit(entry["request"]["url"]).path,
            "body": entry["request"].get("postData", {}).get("text", "")[:1000],
            "status": entry["response"]["status"],
            "answer": entry["response"]["content"].get("text", "")[:300],
        }
        for entry in entries
    ]


if __name__ == "__main__":
    main()
