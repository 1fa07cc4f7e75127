"""Our figures, and our file in vLLM's format, are those of vLLM's own `bench serve`."""

from __future__ import annotations

import ast
import itertools
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycluster.bench.export import to_vllm
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.stats import Bound, measure
from raycluster.bench.summary import BenchSummary, Level
from raycluster.bench.verdict import Circumstances, Client, judge

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
LATENCIES = ("ttft", "tpot", "itl", "e2el")
STATS = {"mean": "mean", "std": "std", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
GOODPUT = {"ttft": 200.0, "tpot": 25.0, "e2el": 1500.0}  # in ms
NOT_KEPT = {"generated_texts"}

# Reads cases of {"outputs": [...], "duration": s}, and prints vLLM's figures for each.
PROGRAM = """
import contextlib, json, sys
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import calculate_metrics

def figures(case):
    outputs = [RequestFuncOutput(**values) for values in case["outputs"]]
    with contextlib.redirect_stdout(sys.stderr):
        metrics, lens = calculate_metrics(
            [], outputs, case["duration"], None, [90, 95, 99], case["goodput"])
    found = {name: float(value) for name, value in vars(metrics).items()
             if not name.startswith("percentiles_")}
    for latency in ("ttft", "tpot", "itl", "e2el"):
        for percent, value in getattr(metrics, f"percentiles_{latency}_ms"):
            found[f"p{percent}_{latency}_ms"] = float(value)
    return found | {"output_lens": lens}

print(json.dumps([figures(case) for case in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "node-env"], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.split("\n")[-2])


def answers(
    seed: int,
    count: int,
    *,
    failed: float = 0.0,
    short: float = 0.2,
    still: float = 0.1,
    per_event: int = 1,
) -> list[RequestRecord]:
    """Return random requests.

    Of them a share `failed`, some of these in mid-stream; a share `short` was answered with one
    token; a share `still` of the gaps is nothing at all; an event carries `per_event` tokens.
    """
    chance = random.Random(seed)
    return [
        _answer(chance, line, failed=failed, short=short, still=still, per_event=per_event)
        for line in range(1, count + 1)
    ]


def _answer(
    chance: random.Random, line: int, *, failed: float, short: float, still: float, per_event: int
) -> RequestRecord:
    sent = chance.uniform(0, 20)
    events = 1 if chance.random() < short else chance.randint(2, 90)
    gaps = tuple(
        0.0 if chance.random() < still else chance.lognormvariate(-4, 1) for _ in range(events - 1)
    )
    times = list(itertools.accumulate(gaps, initial=sent + chance.lognormvariate(-2, 1)))
    broken = chance.random() < failed
    silent = broken and chance.random() < 0.5
    return RequestRecord(
        id=str(line),
        line=line,
        repeat=0,
        intended=sent - chance.uniform(0, 0.01),
        sent=sent,
        end=times[-1] + chance.uniform(0, 0.01),
        first_event=None if silent else times[0],
        last_event=None if silent else times[-1],
        gaps=() if silent else gaps,
        input_tokens=None if broken else chance.randint(1, 500),
        output_tokens=None if broken else events * per_event,
        failure="stream_error" if broken else None,
        detail="broken" if broken else "",
    )


CASES: dict[str, list[RequestRecord]] = {
    "plain": answers(1, 200),
    "one request": answers(2, 1, short=0),
    "two requests": answers(3, 2),
    "failures": answers(4, 150, failed=0.3),
    "one token each": answers(5, 40, short=1),
    "no gaps": answers(6, 60, still=1),
    "several tokens an event": answers(7, 100, failed=0.1, per_event=3),
    "all failed": answers(8, 10, failed=1),
}


def level_of(records: list[RequestRecord]) -> BenchSummary:
    """Return the summary of a run of one level."""
    measures = measure(records)
    seen = Circumstances(Client(None, 0.1), slots=4)
    level = Level(Closed(4), measures, judge(measures, seen), seen)
    return BenchSummary(0.0, "http://127.0.0.1/v1", "m", Load((Closed(4),)), (level,))


def output(record: RequestRecord) -> dict[str, Any]:
    """Return a request as vLLM's client would have noted it."""
    return {
        "success": record.ok,
        "start_time": 1000 + record.sent,
        "ttft": (record.first_event or record.sent) - record.sent,
        "latency": (record.last_event or record.sent) - record.sent,
        "itl": list(record.gaps),
        "prompt_len": record.input_tokens or 0,
        "output_tokens": record.output_tokens or 0,
        "error": record.detail,
    }


@pytest.fixture(scope="module")
def theirs(environment: Path) -> dict[str, dict[str, Any]]:
    """What vLLM says of each case."""
    cases = [
        {
            "outputs": [output(record) for record in sorted(records, key=lambda r: r.sent)],
            "duration": measure(records).duration,
            "goodput": GOODPUT,
        }
        for records in CASES.values()
    ]
    done = subprocess.run(
        [environment / "bin" / "python", "-c", PROGRAM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout.split("\n")[-2]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_our_measures_are_vllms(theirs: dict[str, dict[str, Any]], case: str) -> None:
    ours, wanted = measure(CASES[case]), theirs[case]
    assert (ours.completed, ours.failed) == (wanted["completed"], wanted["failed"])
    assert (ours.total_input_tokens or 0) == wanted["total_input"]
    assert (ours.total_output_tokens or 0) == wanted["total_output"]
    assert ours.request_throughput == pytest.approx(wanted["request_throughput"])
    assert (ours.output_throughput or 0) == pytest.approx(wanted["output_throughput"])
    assert (ours.total_token_throughput or 0) == pytest.approx(wanted["total_token_throughput"])
    kept = measure(CASES[case], [Bound(name, most) for name, most in GOODPUT.items()])
    assert kept.request_goodput == pytest.approx(wanted["request_goodput"])
    for latency in LATENCIES:
        # vLLM calls the gaps between events ITL, however many tokens an event carries.
        spread = getattr(ours, "event_gap_ms" if latency == "itl" else f"{latency}_ms")
        for name, stat in STATS.items():
            figure = 0.0 if spread is None else getattr(spread, stat)
            assert figure == pytest.approx(wanted[f"{name}_{latency}_ms"], abs=1e-9), (
                latency,
                name,
            )
    if case != "several tokens an event":
        assert ours.itl_ms == ours.event_gap_ms


@pytest.mark.parametrize("case", CASES)
def test_the_file_says_what_vllms_would(theirs: dict[str, dict[str, Any]], case: str) -> None:
    records, wanted = CASES[case], theirs[case]
    result = to_vllm(level_of(records), 0, records)
    same = {
        "completed": "completed",
        "failed": "failed",
        "max_output_tokens_per_s": "max_output_tokens_per_s",
        "max_concurrent_requests": "max_concurrent_requests",
        "request_throughput": "request_throughput",
        "rtfx": "rtfx",
    } | {f"{name}_{latency}_ms": f"{name}_{latency}_ms" for latency in LATENCIES for name in STATS}
    for ours, name in same.items():
        assert result[ours] == pytest.approx(wanted[name], abs=1e-9), ours
    assert result["output_lens"] == wanted["output_lens"]


def test_the_file_has_vllms_keys(environment: Path) -> None:
    [source] = environment.glob("lib/python*/site-packages/vllm/benchmarks/serve.py")
    written = set(_keys(ast.parse(source.read_text())))
    assert {"ttfts", "start_times", "max_concurrency", "request_throughput"} <= written
    records = CASES["plain"]
    ours = {key for key in to_vllm(level_of(records), 0, records) if not key.endswith("_ms")}
    assert written - ours == NOT_KEPT
    assert ours - written == set()


def _keys(tree: ast.AST) -> Iterator[str]:
    """Yield the keys of every result of text generation: those that no option adds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            if "ttfts" in names:
                yield from map(str, names)
        if (
            isinstance(node, ast.Assign)
            and isinstance(target := node.targets[0], ast.Subscript)
            and isinstance(target.value, ast.Name)
            and target.value.id == "result_json"
            and isinstance(target.slice, ast.Constant)
            and not str(target.slice.value).startswith("ramp_up_")
        ):
            yield str(target.slice.value)
