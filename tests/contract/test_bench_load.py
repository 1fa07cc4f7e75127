"""The shapes of load, the processes that make it, and what a client that is too slow is called."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raycluster.bench.dataset import parse_dataset
from raycluster.bench.head_runner import FromHead
from raycluster.bench.limits import parse_bounds, parse_limits
from raycluster.bench.load import Conditions, run_bench
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Closed, Load, Open, Replay
from raycluster.bench.server import Look, ServerFigures, summarize
from raycluster.bench.summary import BenchSummary
from raycluster.core.errors import HostError, RayclusterError, UsageError
from raycluster.core.interfaces import Channel, Completed
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.engine_metrics import Reading
from raycluster.openai_client.prompts import Defaults
from raycluster.openai_client.target import Target
from tests.mock_server import Call, MockServer, Script

PROGRAM = "import sys; from raycluster.cli import main; sys.argv[0] = 'raycluster'; main()"


def measured(
    script: Script, lines: list[dict[str, object]], load: Load, conditions: Conditions | None = None
) -> tuple[BenchSummary, list[RequestRecord], list[Call]]:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    prompts = parse_dataset(text.encode(), Defaults(), where="test").prompts
    records: list[RequestRecord] = []
    with MockServer(lambda call: script) as server:
        summary = run_bench(
            prompts,
            Target(server.base_url, "tiny"),
            load,
            tell=lambda line: None,
            keep=lambda level, record: records.append(record),
            conditions=conditions,
        )
    return summary, records, server.measured


def questions(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"question {number}"} for number in range(count)]


@pytest.mark.parametrize("shape", [Closed(6), Open(200.0), Open(200.0, 6)], ids=str)
def test_processes_send_each_prompt_once_and_share_the_slots(shape: Closed | Open) -> None:
    summary, records, calls = measured(
        Script(delay=0.02), questions(120), Load((shape,)), Conditions(processes=3)
    )
    sent = Counter(call.body["messages"][0]["content"] for call in calls)
    assert sent == Counter(f"question {number}" for number in range(120))
    assert sorted(record.line for record in records) == list(range(1, 121))
    (level,) = summary.levels
    assert (level.measures.completed, level.seen.client.processes) == (120, 3)
    if shape.concurrency:
        assert level.measures.max_in_flight <= 6


def test_arrivals_are_the_same_whatever_the_number_of_processes() -> None:
    load = Load((Open(300.0),), seed=5, warmup=0)
    _, one, _ = measured(Script(), questions(60), load)
    _, three, _ = measured(Script(), questions(60), load, Conditions(processes=3))
    due = {record.line: record.intended for record in one}
    assert {record.line: record.intended for record in three} == due


def test_more_processes_than_slots_are_refused() -> None:
    with pytest.raises(UsageError, match="3 processes cannot share 2 slots"):
        measured(Script(), questions(3), Load((Closed(2),)), Conditions(processes=3))


def test_processes_that_die_while_they_start_end_the_run(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # a process that starts runs it too, and fails
    program.write_text(PROGRAM)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"question number {number}\n" for number in range(20_000)))
    with MockServer(lambda call: Script()) as server:
        argv = ["bench", f"--url={server.base_url}", "--model=tiny", f"--prompts={source}"]
        done = subprocess.run(
            [sys.executable, program, *argv, "--concurrency=4", "--processes=2"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "error: bench: a load-generating process ended" in done.stderr


def test_an_interrupt_ends_all_processes_and_keeps_what_was_measured(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.txt", tmp_path / "out"
    source.write_text("".join(f"question {number}\n" for number in range(5000)))
    with MockServer(lambda call: Script(delay=0.05)) as server:
        argv = [sys.executable, "-c", PROGRAM, "bench", "--url", server.base_url, "-m", "tiny"]
        argv += ["-p", str(source), "-c", "4", "--processes", "2", "-o", str(out)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(server.measured) < 50 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before the end" in told
    summary = json.loads((out / "summary.json").read_text())
    kept = (out / "requests.jsonl").read_text().splitlines()
    assert summary["levels"][0]["completed"] == len(kept) >= 40


def test_the_load_grows_and_what_came_before_it_was_full_is_not_in_the_figures() -> None:
    load = Load((Closed(4),), duration=0.5, ramp=0.8, warmup=0)
    summary, records, _ = measured(Script(delay=0.05), questions(50), load)
    (level,) = summary.levels
    early = [record for record in records if record.intended < 0.8]
    assert level.measures.completed + len(early) == len(records)
    assert sum(record.intended < 0.15 for record in early) <= 4  # one slot, 0.05 s each
    last = max(records, key=lambda record: record.intended)
    assert last.intended < 1.3 < max(record.end for record in records)


def test_a_recorded_load_is_sent_when_it_was() -> None:
    at = [5_000, 5_000, 5_200, 5_600]
    lines: list[dict[str, object]] = [
        {"prompt": f"question {n}", "timestamp": ms} for n, ms in enumerate(at)
    ]
    summary, records, calls = measured(Script(), lines, Load((Replay(2.0),), warmup=0))
    due = [record.intended for record in sorted(records, key=lambda record: record.line)]
    assert due == pytest.approx([0, 0, 0.1, 0.3])
    # A timer may ring a tick of the clock early.
    assert all(record.sent > record.intended - 1e-3 for record in records)
    assert "timestamp" not in json.dumps(calls[0].body)
    assert summary.levels[0].shape == Replay(2.0)


@pytest.mark.parametrize("second", [{}, {"timestamp": 3}], ids=["none", "earlier"])
def test_a_recorded_load_without_order_is_refused(second: dict[str, object]) -> None:
    lines: list[dict[str, object]] = [{"prompt": "a", "timestamp": 5}, {"prompt": "b", **second}]
    with pytest.raises(UsageError) as caught:
        measured(Script(), lines, Load((Replay(),)))
    assert caught.value.where == "line 2"


def searched() -> BenchSummary:
    """Search at an endpoint that answers one at a time, in 20 ms."""
    conditions = Conditions(find_max=parse_limits("e2el_p90<400ms"))
    load = Load((Open(10.0),), duration=2.5, warmup=0)
    text = "".join(f"question {number}\n" for number in range(50))
    prompts = parse_dataset(text.encode(), Defaults(), where="test").prompts
    free = [0.0]

    def one_at_a_time(call: Call) -> Script:
        free[0] = max(free[0], time.monotonic()) + 0.02
        return Script(tokens=1, delay=free[0] - time.monotonic())

    with MockServer(one_at_a_time) as server:
        target = Target(server.base_url, "tiny")
        return run_bench(
            prompts, target, load, tell=print, keep=lambda *_: None, conditions=conditions
        )


def test_the_search_ends_at_the_highest_rate_that_keeps_the_limits() -> None:
    """Above 50 requests/s a queue grows; a machine that stood still meanwhile is asked again."""
    for _ in range(3):
        summary = searched()
        found = summary.found
        if found is not None and (found.kept or 0) >= 25:
            break
    assert found is not None and found.kept is not None and found.missed is not None
    assert 25 <= found.kept < found.missed <= 100
    assert found.missed / found.kept <= 1.06
    assert [level.shape for level in summary.levels[:2]] == [Open(10.0), Open(20.0)]


def test_goodput_counts_what_kept_every_bound() -> None:
    conditions = Conditions(goodput=parse_bounds("ttft<10s,e2el<1ms"))
    summary, _, _ = measured(Script(gap=0.01), questions(5), Load((Closed(1),)), conditions)
    assert summary.levels[0].measures.request_goodput == 0
    conditions = Conditions(goodput=parse_bounds("ttft<10s,tpot<10s"))
    summary, _, _ = measured(Script(gap=0.01), questions(5), Load((Closed(1),)), conditions)
    measures = summary.levels[0].measures
    assert measures.request_goodput == measures.request_throughput > 0


def test_the_client_knows_what_it_can_send() -> None:
    conditions = Conditions(calibrate=True)
    summary, _, _ = measured(Script(delay=0.05), questions(20), Load((Closed(2),)), conditions)
    (level,) = summary.levels
    assert level.seen.client.capacity is not None
    assert level.seen.client.capacity > level.measures.request_throughput


def test_a_client_that_gets_too_little_of_a_processor_is_called_invalid(tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("".join(f"question {number}\n" for number in range(200)))
    with MockServer(lambda call: Script(delay=0.02, gap=0.002)) as server:
        argv = [sys.executable, "-c", PROGRAM, "bench", "--url", server.base_url, "-m", "tiny"]
        argv += ["-p", str(source), "-c", "4", "--json", "--no-calibrate"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:  # a tenth of the time, as a quota of the kernel's would
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.045)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02 if len(server.measured) < 2 else 0.005)
        told, _ = process.communicate(timeout=30)
    (level,) = json.loads(told)["levels"]
    assert level["verdict"]["grade"] == "INVALID"
    assert any("client-bound" in reason for reason in level["verdict"]["reasons"])


class Box(LocalTransport):
    """A shell with variables of its own, as that of a node is."""

    def __init__(self, root: Path) -> None:
        super().__init__("box")
        self.env = {"RAYCLUSTER_ROOT": str(root)}

    def run(self, argv: Sequence[str], **more: Any) -> Completed:
        return super().run(argv, **{**more, "env": self.env})

    def stream(self, argv: Sequence[str], **more: Any) -> Iterator[tuple[Channel, bytes]]:
        return super().stream(argv, **{**more, "env": self.env})


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalTransport:
    """A box with a root, and a `python` that has httpx."""
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return Box(tmp_path / "root")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_load_is_the_same_when_it_is_made_elsewhere(
    box: LocalTransport, tmp_path: Path, processes: int
) -> None:
    load = Load((Closed(2), Closed(3)), warmup=2)
    prompts = parse_dataset(b"one\ntwo\nthree\nfour\n", Defaults(), where="test").prompts
    kept: list[tuple[int, RequestRecord]] = []
    with MockServer(lambda call: Script(tokens=5, status=429 if "two" in str(call) else 200)) as s:
        summary = FromHead("box", box)(
            prompts,
            Target(s.base_url, "tiny"),
            load,
            tell=lambda line: None,
            keep=lambda level, record: kept.append((level, record)),
            conditions=Conditions(processes=processes, alive=lambda: True),
        )
    assert [(level.shape, level.measures.completed) for level in summary.levels] == [
        (Closed(2), 3),
        (Closed(3), 3),
    ]
    assert [level.measures.errors for level in summary.levels] == [{"http_status": 1}] * 2
    assert [level.seen.repeated for level in summary.levels] == [0, 4]
    assert [level.seen.client.processes for level in summary.levels] == [processes] * 2
    assert sorted((level, record.line) for level, record in kept) == [
        (level, line) for level in (0, 1) for line in (1, 2, 3, 4)
    ]
    assert list((tmp_path / "root").iterdir()) == []


class Looks:
    """What looks at the servers from here: says how many requests had arrived whenever it did."""

    def __init__(self, server: MockServer, places: Sequence[str]) -> None:
        self._server = server
        self._places = list(places)
        self.arrived: list[int] = []
        self.ended: list[float] = []

    def begin(self) -> None:
        time.sleep(0.3)  # longer than a level takes that would not wait
        self.arrived.append(len(self._server.calls))

    def end(self, origin: float, ramp: float = 0.0) -> ServerFigures | None:
        time.sleep(0.3)
        self.arrived.append(len(self._server.calls))
        self.ended.append(time.monotonic() - origin)
        looks = [Look(origin + n, {self._places[0]: Reading(requests=4.0 * n)}) for n in range(3)]
        del self._places[0]
        return summarize(looks, origin, ramp)


def test_the_servers_are_looked_at_from_here_just_before_and_after_each_level(
    box: LocalTransport, tmp_path: Path
) -> None:
    load = Load((Closed(2), Closed(3)), warmup=2)
    prompts = parse_dataset(b"one\ntwo\nthree\nfour\n", Defaults(), where="test").prompts
    with MockServer(lambda call: Script(tokens=5, delay=0.01)) as server:
        looks = Looks(server, ["a:1", "b:1"])
        began = time.monotonic()
        summary = FromHead("box", box)(
            prompts,
            Target(server.base_url, "tiny"),
            load,
            tell=lambda line: None,
            keep=lambda level, record: None,
            conditions=Conditions(watch=looks),
        )
        took = time.monotonic() - began
    assert looks.arrived == [2, 6, 8, 12]  # two of a warm-up, then the level's four
    assert all(0.3 < ago < took for ago in looks.ended)
    servers = [level.seen.server for level in summary.levels]
    assert [s and (s.replicas[0].place, s.requests) for s in servers] == [("a:1", 8), ("b:1", 8)]
    assert [level.seen.generated for level in summary.levels] == [20, 20]
    assert list((tmp_path / "root").iterdir()) == []


def test_what_fails_elsewhere_is_told_here(box: LocalTransport, tmp_path: Path) -> None:
    prompts = parse_dataset(b"one\n", Defaults(), where="test").prompts
    with MockServer(lambda call: Script()) as server:
        url = server.base_url
    with pytest.raises(RayclusterError, match="no request was answered") as caught:
        FromHead("box", box)(
            prompts, Target(url, "tiny"), Load(), tell=lambda _: None, keep=lambda *_: None
        )
    assert caught.value.where == url
    assert list((tmp_path / "root").iterdir()) == []


def test_a_place_without_the_libraries_is_named(
    box: LocalTransport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nexec /usr/bin/env python3 -S -I "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    prompts = parse_dataset(b"one\n", Defaults(), where="test").prompts
    with pytest.raises(HostError, match=r"bench failed: .*No module named") as caught:
        FromHead("box", box)(
            prompts, Target("http://h", "m"), Load(), tell=lambda _: None, keep=lambda *_: None
        )
    assert "httptools" in caught.value.hint


def bench(source: Path, url: str, *options: str) -> list[str]:
    argv = [sys.executable, "-c", PROGRAM, "bench", "--url", url, "-m", "tiny", "-p", str(source)]
    return [*argv, "--no-calibrate", *options]


def test_a_run_that_was_killed_goes_on_where_a_level_ended(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.txt", tmp_path / "out"
    source.write_text("".join(f"question {number}\n" for number in range(40)))
    options = ("-c", "1,2,4", "--warmup", "0", "-o", str(out))
    holds = True  # what comes after half of the second level, until the run has been killed

    def script(_: Call) -> Script:
        return Script(delay=600 if holds and len(server.measured) > 60 else 0.02)

    with MockServer(script) as server:
        argv = bench(source, server.base_url, *options)
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.measured) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        holds = False
        assert not (out / "summary.json").exists()
        first = (out / "requests.jsonl").read_bytes()[: -len(b"level")]  # as a crash may leave it
        (out / "requests.jsonl").write_bytes(first)
        server.calls.clear()
        other = subprocess.run(
            [*argv, "-n", "9", "--resume"], capture_output=True, text=True, check=False
        )
        assert other.returncode == 2 and "a different run: load differ" in other.stderr
        again = subprocess.run([*argv, "--resume"], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert len(server.measured) == 80
    summary = json.loads((out / "summary.json").read_text())
    assert [level["completed"] for level in summary["levels"]] == [40, 40, 40]
    assert [level["repeated"] for level in summary["levels"]] == [0, 40, 40]
    kept = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert Counter(record["level"] for record in kept) == {0: 40, 1: 40, 2: 40}
    assert (out / "requests-cut.jsonl").read_bytes().count(b"\n") >= 10
    assert (out / "report.html").stat().st_size > 10_000


def test_nothing_goes_on_where_nothing_is(tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("one\n")
    for options in (("--resume",), ("--resume", "-o", str(tmp_path))):
        done = subprocess.run(
            bench(source, "http://127.0.0.1:1", *options),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "no run to resume" in done.stderr


def test_prints_what_vllms_client_saves(tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("one\ntwo\nthree\n")
    with MockServer(lambda call: Script(tokens=5)) as server:
        argv = bench(source, server.base_url, "-c", "1,2", "--format", "vllm")
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["max_concurrency"], second["max_concurrency"]) == (1, 2)
    assert first["completed"] == 3
    assert first["output_lens"] == [5, 5, 5]
    assert len(first["ttfts"]) == len(first["itls"]) == 3
