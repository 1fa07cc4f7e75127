"""`bench` against the scripted endpoint: counts are exact, times are held against its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from raycluster.bench.dataset import parse_dataset
from raycluster.bench.load import run_bench
from raycluster.bench.record import RequestRecord
from raycluster.bench.run import BenchOptions, LoadTarget, run
from raycluster.bench.schedule import Closed, Load, Open
from raycluster.bench.summary import BenchSummary
from raycluster.core.errors import MissedLimitError, RayclusterError, UsageError
from raycluster.openai_client.prompts import Defaults, Prompt
from raycluster.openai_client.target import Target
from tests.mock_server import Call, MockServer, Script
from tests.ports import free_port


def prompts(count: int) -> tuple[Prompt, ...]:
    text = "\n".join(f"question {number}" for number in range(count))
    return parse_dataset(text.encode(), Defaults(), where="test").prompts


def measured(
    script: Script | Callable[[Call], Script], count: int, load: Load
) -> tuple[BenchSummary, list[RequestRecord], MockServer]:
    """Run a load against the script; warm-up requests are answered well."""

    def answer(call: Call) -> Script:
        if call not in server.measured:
            return Script()
        return script if isinstance(script, Script) else script(call)

    records: list[RequestRecord] = []
    with MockServer(answer) as server:
        target = Target(server.base_url, "tiny", {"authorization": "Bearer key"})
        summary = run_bench(
            prompts(count),
            target,
            load,
            tell=lambda line: None,
            keep=lambda level, record: records.append(record),
        )
    return summary, records, server


GOOD = [
    Script(),
    Script(piece=1),
    Script(piece=3, line_end=b"\r\n"),
    Script(together=True),
    Script(together=True, piece=7),
    Script(comments=True),
    Script(text="\u2028\u2029\u0085 "),
    Script(text="\u2028é", piece=1, line_end=b"\r\n"),
    Script(role_event=False),
    Script(tokens=1),
    Script(per_event=3),
]


@pytest.mark.parametrize("script", GOOD, ids=str)
def test_counts_every_answer_however_it_is_cut(script: Script) -> None:
    summary, records, server = measured(script, 6, Load((Closed(2),)))
    (level,) = summary.levels
    assert (level.measures.completed, level.measures.failed) == (6, 0)
    assert level.measures.total_output_tokens == 6 * script.tokens
    assert level.measures.total_input_tokens == 6 * 7
    for record in records:
        call = sent_for(record, server)
        assert record.events == len(call.sent)
        assert record.finish_reason == "stop"


def sent_for(record: RequestRecord, server: MockServer) -> Call:
    wanted = f"question {record.line - 1}"
    calls = [c for c in server.measured if c.body["messages"][0]["content"] == wanted]
    return calls[record.repeat]


BAD = [
    (Script(ending="none"), "truncated", "without [DONE]"),
    (Script(ending="cut"), "truncated", "closed during the response"),
    (Script(ending="cut", stop_after=2), "truncated", "closed during the response"),
    (Script(status=0), "truncated", "closed without a response"),
    (Script(ending="error"), "stream_error", "scripted failure"),
    (Script(ending="error", stop_after=0), "stream_error", "scripted failure"),
    (Script(stop_after=0), "protocol", "no token"),
    (Script(status=429), "http_status", "429: scripted"),
    (Script(status=500, body=b"<html>oops"), "http_status", "500: <html>oops"),
    (Script(content_type="application/json"), "stream_error", "scripted"),
    (Script(content_type="application/json", body=b"{}"), "protocol", "in place of a stream"),
]


@pytest.mark.parametrize(("script", "failure", "detail"), BAD, ids=str)
def test_every_kind_of_failure_is_counted_and_nothing_is_sent_again(
    script: Script, failure: str, detail: str
) -> None:
    def odd_ones_fail(call: Call) -> Script:
        question = int(call.body["messages"][0]["content"].split()[1])
        return script if question % 2 else Script()

    summary, records, server = measured(odd_ones_fail, 6, Load((Closed(2),)))
    (level,) = summary.levels
    assert level.measures.errors == {failure: 3}
    assert (level.measures.completed, level.measures.error_rate) == (3, 0.5)
    assert level.measures.total_output_tokens == 3 * 4
    assert level.verdict.grade == "INVALID"
    assert all(detail in record.detail for record in records if not record.ok)
    assert {record.line for record in records if not record.ok} == {2, 4, 6}
    assert len(server.measured) == 6


def test_an_answer_that_hangs_times_out_and_the_next_one_is_sent() -> None:
    def first_hangs(call: Call) -> Script:
        hangs = "question 0" in json.dumps(call.body)
        return Script(ending="hang", stop_after=2) if hangs else Script()

    load = Load((Closed(1),), timeout=2.0)
    summary, records, _ = measured(first_hangs, 2, load)
    assert summary.levels[0].measures.errors == {"timeout": 1}
    assert records[0].failure == "timeout" and records[0].end - records[0].sent > 1.99
    assert records[0].events == 2
    assert records[1].ok


def test_times_agree_with_those_of_the_server() -> None:
    script = Script(tokens=5, delay=0.05, gap=0.02)
    _, records, server = measured(script, 4, Load((Closed(2),)))
    for record in records:
        call = sent_for(record, server)
        assert record.first_event is not None and record.headers is not None
        assert record.last_event is not None and record.first_token is not None
        steps = (record.intended, record.sent, record.headers, record.first_event)
        assert list(steps) == sorted(steps)
        assert record.first_event <= record.first_token <= record.last_event <= record.end
        # The client cannot have seen an event before it was sent, nor sent after it was received:
        # so its spans contain the server's. Both read one clock; 1 us is what rounding may take.
        assert record.first_event - record.sent >= call.sent[0] - call.received - 1e-6
        assert record.last_event - record.sent >= call.sent[-1] - call.received - 1e-6


def test_gaps_sum_up_to_the_time_between_first_and_last_event() -> None:
    _, records, _ = measured(Script(tokens=6, gap=0.01), 3, Load((Closed(1),)))
    for record in records:
        assert record.first_event is not None and record.last_event is not None
        assert sum(record.gaps) == pytest.approx(record.last_event - record.first_event)


def test_the_closed_loop_keeps_its_concurrency_and_one_connection_per_slot() -> None:
    summary, records, server = measured(Script(gap=0.02), 40, Load((Closed(8),)))
    assert server.max_in_flight == 8
    assert server.connections == 8
    assert summary.levels[0].measures.max_in_flight <= 8
    assert sorted(record.line for record in records) == list(range(1, 41))
    assert len(server.calls) == 40 + 8


def test_requests_leave_in_file_order() -> None:
    _, _, server = measured(Script(), 20, Load((Closed(1),)))
    contents = [call.body["messages"][0]["content"] for call in server.measured]
    assert contents == [f"question {number}" for number in range(20)]


def test_a_request_says_what_the_prompt_and_the_target_say() -> None:
    _, _, server = measured(Script(), 1, Load((Closed(1),)))
    warm_up, call = server.calls
    assert call.body == {
        "messages": [{"role": "user", "content": "question 0"}],
        "max_tokens": 256,
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert call.headers["authorization"] == "Bearer key"
    assert "question" not in json.dumps(warm_up.body)


def test_the_open_loop_keeps_its_schedule_while_the_server_is_slow() -> None:
    load = Load((Open(200.0),), seed=3, warmup=0)
    summary, records, server = measured(Script(tokens=1, delay=0.3), 20, load)
    again, others, _ = measured(Script(tokens=1), 20, load)
    due = sorted(record.intended for record in records)
    assert due == sorted(record.intended for record in others)
    # All were due long before the first could be answered, so none may have waited for another.
    assert due[-1] < 0.3
    assert server.max_in_flight > 1
    assert summary.levels[0].measures.completed == again.levels[0].measures.completed == 20


def test_a_cap_on_the_open_loop_shows_as_delay_in_the_client() -> None:
    load = Load((Open(500.0, concurrency=1),), warmup=0)
    summary, records, server = measured(Script(tokens=1, delay=0.05), 6, load)
    assert server.max_in_flight == 1
    last = max(records, key=lambda record: record.sent)
    assert last.sent - last.intended >= 0.05
    measures = summary.levels[0].measures
    assert measures.e2el_ms is not None and measures.e2el_from_intended_ms is not None
    assert measures.e2el_from_intended_ms.max > measures.e2el_ms.max
    assert any("waited in the client" in reason for reason in summary.levels[0].verdict.reasons)


def test_a_sweep_runs_its_levels_one_after_the_other() -> None:
    load = Load((Closed(1), Closed(3)), requests=6, warmup=0)
    summary, _, server = measured(Script(gap=0.005), 12, load)
    assert [level.measures.completed for level in summary.levels] == [6, 6]
    assert [level.seen.repeated for level in summary.levels] == [0, 0]
    assert max(call.ended for call in server.calls[:6]) <= server.calls[6].received
    assert server.max_in_flight == 3


def test_a_duration_stops_sending_and_lets_the_last_ones_end() -> None:
    load = Load((Closed(2),), duration=0.3)
    summary, records, _ = measured(Script(tokens=2, gap=0.05), 3, load)
    assert all(record.ok and record.intended < 0.3 for record in records)
    assert max(record.end for record in records) > 0.29
    assert summary.levels[0].seen.repeated == len(records) - 3


def test_repeats_carry_a_salt_where_asked() -> None:
    load = Load((Closed(1),), repeat=2, salt=True)
    summary, _, server = measured(Script(), 2, load)
    assert [call.body.get("cache_salt") for call in server.measured] == [
        None,
        None,
        "repeat-1",
        "repeat-1",
    ]
    assert not any("repeat a prompt" in reason for reason in summary.levels[0].verdict.reasons)


def test_several_tokens_in_an_event_are_not_called_tokens() -> None:
    summary, _, _ = measured(Script(tokens=24, per_event=4), 2, Load((Closed(1),)))
    measures = summary.levels[0].measures
    assert measures.itl_ms is None and measures.event_gap_ms is not None
    assert measures.tokens_per_event == pytest.approx(24 / 7)  # six events, and the role's


def test_says_so_when_nothing_listens() -> None:
    target = Target(f"http://127.0.0.1:{free_port()}", "tiny")
    with pytest.raises(RayclusterError, match="no request was answered"):
        run_bench(
            prompts(3), target, Load(), tell=lambda line: None, keep=lambda level, record: None
        )


def test_says_so_when_a_tunnel_leads_nowhere() -> None:
    with (
        MockServer(lambda call: Script(status=0)) as server,
        pytest.raises(RayclusterError, match="no request was answered"),
    ):
        run_bench(
            prompts(3),
            Target(server.base_url, "tiny"),
            Load((Closed(2),)),
            tell=lambda line: None,
            keep=lambda level, record: None,
        )
    assert server.measured == []


def test_a_server_that_dies_fails_the_rest() -> None:
    records: list[RequestRecord] = []
    with MockServer(lambda call: Script()) as server:

        def keep(level: int, record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 2:
                server.close()

        target = Target(server.base_url, "tiny")
        load = Load((Closed(1),))
        summary = run_bench(prompts(5), target, load, tell=lambda line: None, keep=keep)
    assert [record.ok for record in records] == [True, True, False, False, False]
    assert set(summary.levels[0].measures.errors) <= {"connect", "truncated"}
    assert summary.levels[0].measures.errors.get("connect", 0) >= 2


def test_says_so_when_no_request_is_due_in_time() -> None:
    with pytest.raises(UsageError, match="no request was scheduled"):
        measured(Script(), 3, Load((Open(0.001),), duration=0.01, warmup=0))


def command(
    tmp_path: Path, script: Script, screen: io.StringIO, **options: Any
) -> tuple[BenchSummary, list[str]]:
    told: list[str] = []
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "one"}\n{"broken\n{"prompt": "two", "answer": 2}\n')
    with MockServer(lambda call: script) as server:
        target = Target(f"http://user:secret@127.0.0.1:{server.port}", "tiny", {"x-key": "secret"})
        summary = run(
            BenchOptions(str(source), concurrency="1", **options),
            lambda: contextlib.nullcontext(LoadTarget(target)),
            stdin=io.BytesIO(),
            console=Console(file=screen, width=120),
            tell=told.append,
        )
    return summary, told


def test_json_is_one_object_alone_and_holds_no_secret(tmp_path: Path) -> None:
    output = io.StringIO()
    _, told = command(tmp_path, Script(), output, format="json")
    (line,) = output.getvalue().splitlines()
    result = json.loads(line)
    assert (result["schema"], result["kind"]) == (1, "bench")
    assert result["verdict"] in {"SUSPECT", "INVALID"}  # two samples are too few
    assert result["dataset"]["formats"] == {"prompt": 2}
    assert result["dataset"]["refused"][0]["line"] == 2
    assert result["levels"][0]["completed"] == 2
    assert result["levels"][0]["ttft_ms"]["count"] == 2
    assert "secret" not in line
    assert told[0].startswith("line 2 refused") and "answer (1)" in told[1]


def test_the_report_is_plain_where_no_terminal_is(tmp_path: Path) -> None:
    output = io.StringIO()
    command(tmp_path, Script(), output, limits=("ttft_p95<60s",))
    text = output.getvalue()
    assert "2 completed, 0 failed" in text and "TTFT" in text and "too few samples" in text
    assert "kept: ttft_p95<60s" in text
    assert text.isascii() and "\x1b" not in text


def test_files_hold_every_request_and_the_summary(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    summary, _ = command(tmp_path, Script(), io.StringIO(), output=folder)
    lines = (folder / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [1, 3]
    assert RequestRecord.from_json(json.loads(lines[0])).ok
    written = json.loads((folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary.to_json()))
    with pytest.raises(UsageError, match="results already exist there"):
        command(tmp_path, Script(), io.StringIO(), output=folder)


def test_a_missed_limit_is_an_error_of_its_own_after_the_report(tmp_path: Path) -> None:
    output = io.StringIO()
    with pytest.raises(MissedLimitError, match="output_throughput>1e9: it is") as caught:
        command(tmp_path, Script(), output, limits=("output_throughput>1e9",))
    assert caught.value.exit_code == 4
    assert "missed: output_throughput>1e9" in output.getvalue()


def test_a_run_is_held_against_an_earlier_one(tmp_path: Path) -> None:
    folder, output = tmp_path / "before", io.StringIO()
    command(tmp_path, Script(), io.StringIO(), output=folder)
    slow = Script(delay=0.3)
    with pytest.raises(MissedLimitError, match="worse than the baseline") as caught:
        command(tmp_path, slow, output, baseline=folder / "summary.json", max_regress="50%")
    assert "ttft_p50" in caught.value.what
    assert "against the baseline" in output.getvalue()
    summary, _ = command(tmp_path, slow, output, baseline=folder / "summary.json")
    assert summary.comparison is not None
    worse = {change.name: change.worse for change in summary.comparison.changes}
    assert worse["ttft_p50"] > 0.5 and 0.1 < worse["request_throughput"] <= 1
    assert "the prompts differ" not in summary.comparison.doubts


def test_all_requests_failed_is_an_error_after_the_report(tmp_path: Path) -> None:
    output = io.StringIO()
    with pytest.raises(RayclusterError, match="all 2 requests failed") as caught:
        command(tmp_path, Script(status=500), output, limits=("ttft_p95<3s",))
    assert caught.value.exit_code == 1
    assert "INVALID" in output.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"limits": ("ttft<3s",)},
        {"repeat": 0},
        {"requests": 0},
        {"duration": -1.0},
        {"timeout": 0.0},
        {"warmup": -1},
        {"rate": "fast"},
        {"rate": "0"},
        {"rate": "nan"},
        {"rate": "inf"},
        {"max_regress": "5%"},
        {"baseline": Path("/absent/summary.json")},
        {"baseline": Path("/dev/null")},
    ],
    ids=str,
)
def test_a_wrong_command_line_sends_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("one\n")

    def connect() -> contextlib.AbstractContextManager[LoadTarget]:
        raise AssertionError("it was reached")

    with pytest.raises(UsageError) as caught:
        run(
            BenchOptions(str(source), **options),
            connect,
            stdin=io.BytesIO(),
            console=Console(file=io.StringIO()),
            tell=lambda line: None,
        )
    assert caught.value.where


def test_the_command_line_reaches_any_endpoint_with_a_key_from_the_environment() -> None:
    from raycluster.commands.bench import bench

    app = typer.Typer()
    app.command()(bench)
    with MockServer(lambda call: Script()) as server:
        arguments = ["--prompts", "-", "--url", f"{server.base_url}/v1", "--model", "tiny"]
        arguments += ["--api-key", "env:BENCH_KEY", "-c", "1,2", "-n", "2", "--json"]
        result = CliRunner().invoke(
            app, arguments, input="one\ntwo\n", env={"BENCH_KEY": "k"}, catch_exceptions=False
        )
    assert result.exit_code == 0
    levels = json.loads(result.stdout)["levels"]
    assert [level["load"]["concurrency"] for level in levels] == [1, 2]
    assert [level["completed"] for level in levels] == [2, 2]
    assert {call.headers["authorization"] for call in server.calls} == {"Bearer k"}
    assert {call.path for call in server.calls} == {"/v1/chat/completions"}


INTERRUPTED = """
import sys
from raycluster.openai_client.target import Target
from raycluster.bench.dataset import parse_dataset
from raycluster.openai_client.prompts import Defaults
from raycluster.bench.load import run_bench
from raycluster.bench.schedule import Closed, Load

prompts = parse_dataset(b"one\\ntwo\\nthree", Defaults(), where="").prompts
load = Load((Closed(1), Closed(2)), duration=600.0)
keep = lambda level, record: print("answered", flush=True)
summary = run_bench(prompts, Target(sys.argv[1], "tiny"), load, tell=print, keep=keep)
print(len(summary.levels), summary.interrupted, summary.levels[0].measures.failed)
"""


def test_an_interrupt_ends_the_run_with_what_was_measured() -> None:
    with MockServer(lambda call: Script(gap=0.01)) as server:
        child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", INTERRUPTED, server.base_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "answered\n"
        os.kill(child.pid, signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    assert output.splitlines()[-1] == "1 True 0"
    assert (child.returncode, errors) == (0, "")
