"""Loads on every endpoint, against the scripted one."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raycluster.bench.dataset import parse_dataset
from raycluster.bench.load import run_bench
from raycluster.bench.record import RequestRecord
from raycluster.bench.run import BenchOptions, LoadTarget, run
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.summary import BenchSummary
from raycluster.core.errors import UsageError
from raycluster.openai_client.prompts import Defaults
from raycluster.openai_client.target import Target
from tests.mock_server import Call, MockServer, Script

KIND = "application/json"
EMBEDDED = {"object": "list", "data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
RERANKED = {"results": [], "usage": {"total_tokens": 7}}


def load(
    script: Script, lines: list[Any], **more: Any
) -> tuple[BenchSummary, list[RequestRecord], list[Call]]:
    """Send the lines two at once; return what came of it, and what the endpoint was asked."""
    content = "\n".join(map(json.dumps, lines)).encode()
    prompts = parse_dataset(content, Defaults(**more), where="test").prompts
    records: list[RequestRecord] = []
    with MockServer(lambda _: script) as server:
        summary = run_bench(
            prompts,
            Target(server.base_url, "tiny"),
            Load((Closed(2),)),
            tell=lambda _: None,
            keep=lambda _, record: records.append(record),
        )
        return summary, records, server.measured


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
@pytest.mark.parametrize("script", [Script(tokens=5), Script(piece=3, line_end=b"\r\n", tokens=5)])
def test_streams_of_other_apis_are_counted(endpoint: str, script: Script) -> None:
    summary, records, calls = load(script, [f"question {n}" for n in range(4)], endpoint=endpoint)
    (level,) = summary.levels
    assert (level.measures.completed, level.measures.failed) == (4, 0)
    assert level.measures.total_output_tokens == 20
    assert level.measures.total_input_tokens == 28 and level.measures.total_cached_tokens == 16
    assert level.measures.tpot_ms is not None and level.measures.itl_ms is not None
    assert {record.events for record in records} == {5}
    assert {record.finish_reason for record in records} == {
        "stop" if endpoint == "responses" else "end_turn"
    }
    for call in calls:
        assert call.path == f"/v1/{endpoint}"
        assert call.body["stream"] is True and "stream_options" not in call.body
        limit = "max_output_tokens" if endpoint == "responses" else "max_tokens"
        assert call.body[limit] == 256


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (Script(ending="none"), "truncated"),
        (Script(ending="cut"), "truncated"),
        (Script(ending="error"), "stream_error"),
        (Script(stop_after=1), "protocol"),
    ],
)
def test_streams_of_other_apis_that_fail(endpoint: str, script: Script, failure: str) -> None:
    summary, _, _ = load(script, ["one", "two"], endpoint=endpoint)
    assert summary.levels[0].measures.errors == {failure: 2}


@pytest.mark.parametrize(
    ("url", "body", "answer"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}, EMBEDDED),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, EMBEDDED),
        ("/rerank", {"query": "a", "documents": ["b"]}, RERANKED),
        ("/v2/rerank", {"query": "a", "documents": ["b"]}, RERANKED),
    ],
)
def test_answers_that_are_no_streams_are_timed_as_a_whole(
    url: str, body: dict[str, Any], answer: dict[str, Any]
) -> None:
    script = Script(content_type=KIND, body=json.dumps(answer).encode())
    summary, records, calls = load(script, [{"url": url, "body": body}] * 3)
    measures = summary.levels[0].measures
    assert (measures.completed, measures.errors) == (3, {})
    assert (measures.total_input_tokens, measures.total_output_tokens) == (21, 0)
    assert measures.ttft_ms is None and measures.tpot_ms is None
    assert measures.e2el_ms is not None and measures.e2el_ms.count == 3
    assert all("stream" not in call.body and "max_tokens" not in call.body for call in calls)
    assert all(record.last_event is not None for record in records)


@pytest.mark.parametrize(
    ("script", "failure", "detail"),
    [
        (Script(content_type=KIND, body=b'{"error": {"message": "no"}}'), "stream_error", "no"),
        (
            Script(content_type=KIND, body=b'{"object": "error", "message": "no"}'),
            "stream_error",
            "",
        ),
        (Script(content_type=KIND, body=b"[]"), "protocol", "not an object"),
        (Script(content_type=KIND, body=b"<html>"), "protocol", "not JSON"),
        (Script(content_type=KIND, body=b'{"data": []}', ending="cut"), "truncated", "closed"),
        (Script(status=503, content_type=KIND), "http_status", "503: scripted"),
    ],
)
def test_whole_answers_that_are_none(script: Script, failure: str, detail: str) -> None:
    summary, records, _ = load(script, ["one"], endpoint="embeddings")
    assert summary.levels[0].measures.errors == {failure: 1}
    assert detail in records[0].detail


def test_an_error_in_the_place_of_a_stream_is_one() -> None:
    script = Script(content_type=KIND, body=b'{"object": "error", "message": "too long"}')
    _, records, _ = load(script, ["one"])
    assert (records[0].failure, records[0].detail) == ("stream_error", "too long")


@pytest.mark.parametrize("kind", ["Text/Event-Stream", "TEXT/EVENT-STREAM; charset=utf-8"])
@pytest.mark.parametrize("coding", ["", "gzip", "GZip"])
def test_a_stream_is_one_however_its_kind_is_written_and_packed(kind: str, coding: str) -> None:
    events = [
        *({"choices": [{"index": 0, "delta": {"content": "a"}}]} for _ in range(3)),
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    body += b"data: [DONE]\n\n"
    packed = gzip.compress(body) if coding else body
    headers = (("content-encoding", coding),) if coding else ()
    script = Script(content_type=kind, body=packed, headers=headers)
    summary, _, _ = load(script, ["one", "two"])
    assert summary.levels[0].measures.errors == {}
    assert summary.levels[0].measures.total_output_tokens == 6


def test_a_packing_that_nobody_asked_for_is_said() -> None:
    script = Script(body=b"x", content_type=KIND, headers=(("content-encoding", "br"),))
    _, records, _ = load(script, ["one"])
    assert records[0].failure == "protocol" and "packed by br" in records[0].detail


def measure(prompts: Path, script: Script, **options: Any) -> tuple[dict[str, Any], list[Call]]:
    """Run the whole command's work; return what `--json` prints."""
    out = io.StringIO()
    with MockServer(lambda _: script) as server:

        @contextmanager
        def connect() -> Iterator[LoadTarget]:
            yield LoadTarget(Target(server.base_url, "tiny"))

        run(
            BenchOptions(str(prompts), concurrency="1", format="json", calibrate=False, **options),
            connect,
            stdin=io.BytesIO(),
            console=Console(file=out),
            tell=lambda _: None,
        )
        return json.loads(out.getvalue()), server.measured


def test_a_run_over_whole_answers_writes_all_its_files(tmp_path: Path) -> None:
    prompts, folder = tmp_path / "in.csv", tmp_path / "out"
    prompts.write_text('text,label\nSay hi,1\n"Say, ho",2\n')
    script = Script(content_type=KIND, body=json.dumps(EMBEDDED).encode())
    summary, calls = measure(prompts, script, endpoint="embeddings", output=folder)
    assert [call.body["input"] for call in calls] == ["Say hi", "Say, ho"]
    assert summary["levels"][0]["completed"] == 2 and summary["dataset"]["unsent"] == {"label": 2}
    assert {path.name for path in folder.iterdir()} >= {"report.html", "requests.csv"}


def test_each_turn_of_a_conversation_is_sent_after_those_before_it(tmp_path: Path) -> None:
    turns = [{"from": w, "value": f"{w} {n}"} for n in (1, 2) for w in ("human", "gpt")]
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "u1"}]
    said += [{"role": "assistant", "content": "a1"}, {"role": "user", "content": "u2"}]
    lines = [{"id": "a", "conversations": turns}, {"id": "b", "messages": said, "top_p": 1}, "c"]
    prompts = tmp_path / "in.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    _, calls = measure(prompts, Script(), multi_turn=True)
    asked = [[each["content"] for each in call.body["messages"]] for call in calls]
    assert asked == [
        ["human 1"],
        ["s", "u1"],
        ["c"],
        ["human 1", "gpt 1", "human 2"],
        ["s", "u1", "a1", "u2"],
    ]
    assert [call.body.get("top_p") for call in calls] == [None, 1, None, None, 1]
    _, calls = measure(prompts, Script())
    assert [len(call.body["messages"]) for call in calls] == [1, 4, 1]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"output": Path("-")}, "--output"),
        ({"endpoint": "messages", "ignore_eos": True}, "--ignore-eos"),
        ({"endpoint": "speech"}, "--endpoint"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, options: dict[str, Any], where: str
) -> None:
    prompts = tmp_path / "in.txt"
    prompts.write_text("one\n")
    with pytest.raises(UsageError) as caught:
        measure(prompts, Script(), **options)
    assert caught.value.where == where and caught.value.hint
    assert not Path("-").exists()
