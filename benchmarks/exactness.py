"""How far `bench`'s figures are from the truth, against an endpoint that notes when it wrote.

    python -m benchmarks.exactness [--requests 200]

The endpoint runs in a process of its own, on the same clock. Its answers are cut at every byte,
carry several tokens per event or several events per packet, and hold U+2028, CR LF and comments;
some end early or with an error. Counts must be exact, TTFT and TPOT within 2 ms of when an event's
last byte was written. Root is not needed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.figures import Limit, keep
from raycluster.bench.load import run_bench
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.stats import distribution, measure
from raycluster.openai_client.lines import CHAT
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target
from tests.mock_server import Call, MockServer, Script

MOST_MS = 2.0
SCRIPTS: dict[str, Script] = {
    "plain": Script(tokens=16, delay=0.05, gap=0.01),
    "cut at every byte": Script(tokens=16, delay=0.05, gap=0.02, piece=1, line_end=b"\r\n"),
    "cut in three, U+2028": Script(tokens=16, delay=0.05, gap=0.01, piece=3, text="\u2028\u0085é"),
    "three tokens per event": Script(tokens=48, delay=0.02, gap=0.01, per_event=3, comments=True),
    "all events at once": Script(tokens=16, delay=0.05, together=True),
    "error in the stream": Script(tokens=16, delay=0.02, gap=0.01, stop_after=5, ending="error"),
    "no [DONE]": Script(tokens=16, delay=0.02, gap=0.01, ending="none"),
    "cut": Script(tokens=16, delay=0.02, gap=0.01, stop_after=5, ending="cut"),
}
FAILS = {"error in the stream": "stream_error", "no [DONE]": "truncated", "cut": "truncated"}


@dataclass(frozen=True)
class Truth:
    """What the endpoint saw of one request."""

    question: int
    received: float
    written: tuple[float, ...]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    count = parser.parse_args().requests
    rows: list[dict[str, object]] = []
    limits: list[Limit] = []
    for name, script in SCRIPTS.items():
        records, truths = measured(script, count)
        row, found = compared(name, script, records, truths)
        print(row, flush=True)
        rows.append(row)
        limits += found
    keep("exactness", rows, limits)


def compared(
    name: str, script: Script, records: Sequence[RequestRecord], truths: Sequence[Truth]
) -> tuple[dict[str, object], list[Limit]]:
    """Return a row of figures, and what is promised of them."""
    by_question = {truth.question: truth for truth in truths}
    pairs = [(record, by_question[record.line]) for record in records]
    figures = measure(records)
    wrong = sum(record.events != len(truth.written) for record, truth in pairs)
    wrong += abs(len(records) - len(truths))
    if name in FAILS:
        wrong += figures.errors != {FAILS[name]: len(records)}
        return {"script": name, "requests": len(records), "wrong_counts": wrong}, [
            Limit(f"{name}: wrong counts", wrong, 0)
        ]
    wrong += figures.total_output_tokens != script.tokens * len(records)
    first = distribution(
        abs((record.first_event or 0) - record.sent - (truth.written[0] - truth.received)) * 1e3
        for record, truth in pairs
    )
    each = distribution(
        abs(
            (record.last_event or 0)
            - (record.first_event or 0)
            - (truth.written[-1] - truth.written[0])
        )
        * 1e3
        / (script.tokens - 1)
        for record, truth in pairs
    )
    assert first is not None and each is not None
    row = {
        "script": name,
        "requests": len(records),
        "wrong_counts": wrong,
        "ttft_off_ms": {"p50": first.p50, "p99": first.p99, "max": first.max},
        "tpot_off_ms": {"p50": each.p50, "p99": each.p99, "max": each.max},
    }
    return row, [
        Limit(f"{name}: wrong counts", wrong, 0),
        Limit(f"{name}: TTFT off by, p99 (ms)", first.p99, MOST_MS),
        Limit(f"{name}: TPOT off by, p99 (ms)", each.p99, MOST_MS),
    ]


def measured(script: Script, count: int) -> tuple[list[RequestRecord], list[Truth]]:
    """Return what the client recorded, and what the endpoint did."""
    records: list[RequestRecord] = []
    prompts = [
        Prompt(str(line), line, CHAT, {"messages": [{"role": "user", "content": str(line)}]})
        for line in range(1, count + 1)
    ]
    with endpoint(script) as (url, told):
        run_bench(
            prompts,
            Target(url, "tiny"),
            Load((Closed(2),), warmup=0),
            tell=print,
            keep=lambda _, record: records.append(record),
        )
        told.send(None)
        truths: list[Truth] = told.recv()
    return records, truths


@contextmanager
def endpoint(script: Script) -> Iterator[tuple[str, Connection]]:
    """Run the endpoint; yield its URL, and a pipe that tells what it saw when something is sent."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, script))
    process.start()
    try:
        yield ours.recv(), ours
    finally:
        ours.close()
        process.join(10)


def serve(pipe: Connection, script: Script) -> None:
    """Answer until the pipe says to stop, then send what was seen."""
    with MockServer(lambda _: script) as server:
        pipe.send(server.base_url)
        pipe.recv()
        pipe.send([truth(call) for call in server.calls])


def truth(call: Call) -> Truth:
    """Return what the endpoint saw of a request."""
    question = int(call.body["messages"][0]["content"])
    return Truth(question, call.received, tuple(call.written))


if __name__ == "__main__":
    main()
