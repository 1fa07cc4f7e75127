"""What a request and an event cost the client: `raycluster bench`, `vllm bench serve`, guidellm.

    python -m benchmarks.client [--rounds 3] [--requests 4000]

All three ask one endpoint whose answers are known (benchmarks/streams.py), 16 at a time, with the
same prompts. CPU seconds of the whole program, its helpers' too, are taken for few and for many
requests, with short and with long answers; the differences are what one request and one event
cost, and starting the program is in neither. Then our own client with 1 and with 4 processes. Ends
with 1 when ours is not the cheapest. Root is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.cold_up import VLLM
from benchmarks.figures import Limit, keep
from tests.local.cluster import made_by

ROOT = Path(__file__).parents[1]
GUIDELLM = "guidellm==0.8.1"
FROM_NODE = ("torch", "transformers", "numpy")
"""What the node's environment has already; guidellm would bring another one."""
SLOTS = 16
SHORT, LONG = 1, 129
FEW = 100
GAP = 0.005


@dataclass(frozen=True)
class Client:
    """A program that sends `count` prompts of a file to an endpoint, for answers of `tokens`."""

    name: str
    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self, url: str, count: int, tokens: int) -> float:
        """Run it once; return the CPU seconds that it took, its child processes' included."""
        values = {"URL": url, "COUNT": str(count), "TOKENS": str(tokens)}
        command = list(self.words)
        for name, value in values.items():
            command = [word.replace(f"<{name}>", value) for word in command]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **self.env}
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            if process.returncode:
                raise SystemExit(f"{self.name}: {output.read().decode()[-3000:]}")
        return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="of short answers")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        made = clients(folder)
        rows: list[dict[str, object]] = []
        for round_number in range(options.rounds):
            for client in made if round_number % 2 == 0 else made[::-1]:
                row = {"round": round_number, "client": client.name, **cost(client, options)}
                print(row, flush=True)
                rows.append(row)
        rows += [processes(count, options.requests) for count in (1, 4)]
    keep("client", rows, limits(rows))


def clients(folder: Path) -> list[Client]:
    """Return the three, with what they need installed and a file of prompts written."""
    env = extras(folder)
    python = f"{made_by('node-env')}/bin/python"
    prompts = folder / "prompts.jsonl"
    lines = [{"prompt": f"question number {number}"} for number in range(5000)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    vllm = (
        *(python, "-c", VLLM, "bench", "serve", "--backend=openai-chat", "--base-url=<URL>"),
        *("--endpoint=/v1/chat/completions", "--model=tiny", f"--tokenizer={made_by('tiny')}"),
        *("--dataset-name=custom", f"--dataset-path={prompts}", "--skip-chat-template"),
        *("--custom-output-len=<TOKENS>", "--num-prompts=<COUNT>", f"--max-concurrency={SLOTS}"),
        *("--num-warmups=0", "--disable-tqdm"),
    )
    guidellm = (
        *(python, "-m", "guidellm", "run", "--disable-progress", "--backend"),
        "kind=openai_http,target=<URL>,model=tiny,http2=false",
        *("--profile", f"kind=concurrent,streams={SLOTS}"),
        *("--constraint", "kind=max_requests,count=<COUNT>"),
        *("--data", f"kind=json_file,path={prompts}"),
        *("--output", f"kind=json,path={folder / 'guidellm.json'}"),
    )
    return [
        Client("raycluster", ours(prompts)),
        Client("vllm", vllm, env),
        Client("guidellm", guidellm, env),
    ]


def extras(folder: Path) -> dict[str, str]:
    """Install what the others need beside the node's environment; return the variables for it.

    `vllm bench serve` reads a file of prompts with pandas, which comes with guidellm.
    """
    target = folder / "extras"
    unwanted = folder / "unwanted.txt"
    unwanted.write_text("".join(f"{name}; python_version < '3'\n" for name in FROM_NODE))
    python = f"{made_by('node-env')}/bin/python"
    uv = (ROOT / ".venv/bin/uv", "pip", "install", "--quiet", "--python", python)
    subprocess.run([*uv, "--target", target, "--override", unwanted, GUIDELLM], check=True)
    return {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def ours(prompts: Path) -> tuple[str, ...]:
    """Return the command of our own client."""
    return (
        *(str(ROOT / ".venv/bin/raycluster"), "bench", "--url=<URL>", "--model=tiny"),
        *(f"--prompts={prompts}", "-n<COUNT>", f"-c{SLOTS}", "--max-tokens=<TOKENS>"),
        *("--warmup=0", "--json", "--no-calibrate"),
    )


def cost(client: Client, options: argparse.Namespace) -> dict[str, float]:
    """Return the CPU ms of one request, of one event, and of the program's start."""
    per: dict[int, float] = {}
    least = float("inf")
    # Starting such a program takes up to 20 s of CPU, give or take half a second.
    for tokens, count in ((SHORT, options.requests), (LONG, options.requests // 5)):
        with endpoint(tokens, GAP) as url:
            few = client.run(url, FEW, tokens)
            many = client.run(url, FEW + count, tokens)
        per[tokens] = (many - few) / count * 1e3
        least = min(least, few * 1e3)
    event = (per[LONG] - per[SHORT]) / (LONG - SHORT)
    return {
        "request_ms": round(per[SHORT], 4),
        "event_ms": round(event, 5),
        "start_ms": round(least),
    }


def processes(count: int, requests: int) -> dict[str, object]:
    """Return how many requests per second our client sends with so many processes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, endpoint(SHORT, 0, processes=4) as url:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(f"question number {number}\n" for number in range(5000)))
        command = [word.replace("<URL>", url) for word in ours(prompts)]
        command = [word.replace("<TOKENS>", "1") for word in command]
        command = [word.replace("<COUNT>", str(requests * 10)) for word in command]
        done = subprocess.run(
            [*command, f"--processes={count}"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    (level,) = json.loads(done.stdout)["levels"]
    row = {"processes": count, "requests_per_second": level["request_throughput"]}
    print(row, f"on {os.cpu_count()} cores, the endpoint on them too", flush=True)
    return row


@contextmanager
def endpoint(
    tokens: int, gap: float, first: float | None = None, processes: int = 1
) -> Iterator[str]:
    """Run benchmarks/streams.py; yield its URL. `first`: seconds to the first token, else a gap."""
    times = (str(gap), str(gap if first is None else first))
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streams", str(tokens), *times, str(processes)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate(timeout=20)


def limits(rows: Sequence[Mapping[str, object]]) -> list[Limit]:
    """Return what is promised: less than both of the others for a request and for an event."""

    def middle(client: str, name: str) -> float:
        return median(float(str(row[name])) for row in rows if row.get("client") == client)

    made = []
    for name in ("request_ms", "event_ms"):
        for other in ("vllm", "guidellm"):
            ratio = middle("raycluster", name) / middle(other, name)
            made.append(Limit(f"{name}: raycluster / {other}", ratio, 1))
    one, four = (float(str(r["requests_per_second"])) for r in rows if "processes" in r)
    print(f"4 processes / 1: {four / one:.2f}")
    return made


if __name__ == "__main__":
    main()
