"""Whole runs against the scripted endpoint: what is written, what is sent, how they end."""

from __future__ import annotations

import gzip
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raycluster.batch.job import RequestShape
from raycluster.batch.ledger import Ledger
from raycluster.core.errors import (
    AuthError,
    ConnectionLostError,
    LockedError,
    RayclusterError,
    UsageError,
)
from raycluster.core.interfaces import Address, ByteStream
from raycluster.openai_client.target import Target
from raycluster.serve.asking.result import Fingerprint
from raycluster.serve.asking.retrying_client import Tries
from raycluster.tunnel.channels import ChannelForwarder
from raycluster.tunnel.ports import Forward
from tests.unit.batch.conftest import QUICK, Batch, Serve, nowhere


def said(result: dict[str, Any]) -> str:
    return str(result["response"]["body"]["said"])


def test_every_line_of_ten_thousand_gets_one_result_through_faults(
    batch: Batch, serve: Serve
) -> None:
    count = 10_000
    batch.write([{"custom_id": f"c{n}", "prompt": f"question {n}"} for n in range(count)])
    server = serve(faults=20)
    summary = batch.run(server.url)
    results = batch.results()
    assert (summary.ok, summary.failed, summary.left) == (count, 0, 0)
    assert {r["custom_id"]: said(r) for r in results} == {
        f"c{n}": f"question {n}" for n in range(count)
    }
    assert len({r["id"] for r in results}) == len(results) == count
    calls = server.finish()
    assert set(summary.retried) == {"http_429", "http_503", "http_500", "connection", "truncated"}
    assert len(calls) == summary.sent == count + sum(summary.retried.values())
    good = Counter(call["text"] for call in calls if call["status"] == 200)
    assert set(good.values()) == {1} and len(good) == count


def test_results_are_in_the_batch_format(batch: Batch, serve: Serve) -> None:
    chat = {"messages": [{"role": "user", "content": "pretty"}], "stream": True, "model": "m"}
    batch.write(
        [
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
            {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "two"}},
            {"custom_id": "é", "url": "/v1/embeddings", "body": {"input": ["x"]}},
            {"prompt": "four", "max_tokens": 3},
        ]
    )
    server = serve()
    batch.run(server.url, shape=RequestShape(max_tokens=9, default_model="own"))
    results = {r["custom_id"]: r for r in batch.results()}
    assert set(results) == {"a", "b", "é", "line-4"}
    for result in results.values():
        assert set(result) == {"id", "custom_id", "response", "error"}
        assert result["error"] is None and result["response"]["status_code"] == 200
        assert result["response"]["request_id"].startswith("r-")
    assert said(results["a"]) == "pretty"
    calls = {call["text"]: (call["path"], call["body"]) for call in server.finish()}
    message = {"messages": [{"role": "user", "content": "pretty"}]}
    assert calls["pretty"] == (
        "/v1/chat/completions",
        {"model": "m", "max_tokens": 9, **message},
    )
    assert calls["two"] == ("/v1/completions", {"model": "own", "prompt": "two", "max_tokens": 9})
    assert calls["['x']"] == ("/v1/embeddings", {"model": "own", "input": ["x"]})
    assert calls["four"][1]["max_tokens"] == 3


def test_what_cannot_be_retried_is_an_error_at_once_and_goes_again_on_request(
    batch: Batch, serve: Serve
) -> None:
    batch.write(
        [
            {"prompt": "once:400"},
            {"prompt": "once:404"},
            '{"prompt": "torn',
            {"prompt": "fine"},
            {"prompt": "once:422"},
        ]
    )
    server = serve()
    with pytest.raises(RayclusterError, match="4 of 5 lines failed") as caught:
        batch.run(server.url)
    assert caught.value.exit_code == 1 and "--retry-errors" in caught.value.hint
    errors = {r["error"]["line"]: r for r in batch.results() if r["error"]}
    assert {line: r["error"]["code"] for line, r in errors.items()} == {
        1: "http_400",
        2: "http_404",
        3: "invalid_line",
        5: "http_422",
    }
    assert errors[1]["response"]["status_code"] == 400
    assert errors[1]["response"]["body"] == {"error": {"message": "scripted"}}
    assert "line 3: not valid JSON" in errors[3]["error"]["message"]
    assert errors[3]["response"] is None
    with pytest.raises(RayclusterError, match="1 of 5 lines failed"):
        batch.run(server.url, retry_errors=True)
    assert [r["error"]["line"] for r in batch.results() if r["error"]] == [3]
    assert len(batch.results()) == 5
    sent = Counter(call["text"] for call in server.finish())
    assert sent == {"once:400": 2, "once:404": 2, "fine": 1, "once:422": 2}


def test_a_line_that_fails_again_and_again_is_given_up(batch: Batch, serve: Serve) -> None:
    batch.ask("always:500", "always:408", "fine")
    server = serve()
    with pytest.raises(RayclusterError, match="2 of 3 lines failed"):
        batch.run(server.url, tries=Tries(retries=2, backoff=0.01))
    sent = Counter(call["text"] for call in server.finish())
    assert sent == {"always:500": 3, "always:408": 3, "fine": 1}
    messages = {r["custom_id"]: r["error"] and r["error"]["message"] for r in batch.results()}
    assert "after 3 attempts" in messages["line-1"]


def test_while_others_are_answered_a_line_that_is_refused_is_given_up_too(
    batch: Batch, serve: Serve
) -> None:
    batch.ask("always:503", *(f"fine {n}" for n in range(2000)))
    server = serve(delay=0.001)
    with pytest.raises(RayclusterError, match="1 of 2,001 lines failed"):
        batch.run(server.url, tries=Tries(retries=2, backoff=0.01), concurrency=4)


def test_waits_as_long_as_the_server_asks(batch: Batch, serve: Serve) -> None:
    batch.ask("once:429:1", *(f"fine {n}" for n in range(200)))
    server = serve()
    batch.run(server.url, concurrency=4)
    calls = server.finish()
    told = calls[0]["ended"]
    assert calls[0]["text"] == "once:429:1"
    # Of four slots one heard the 429; each other may have sent before that was read.
    meanwhile = [call for call in calls if told < call["received"] < told + 0.9]
    assert len(meanwhile) <= 3
    assert len(calls) == 202


def test_an_endpoint_that_is_away_costs_no_line(batch: Batch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        batch.ask("one", "two")
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RayclusterError, match="no response for") as caught:
            batch.run(url, tries=Tries(retries=0, patience=0.2, backoff=0.01))
    assert "run the same command to continue" in caught.value.hint
    assert batch.results() == []


class Broken:
    """Dials the endpoint, but for the attempts that fall into the outage."""

    def __init__(self, port: int, outage: range) -> None:
        self._port = port
        self._outage = outage
        self.attempts = 0

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        self.attempts += 1
        if self.attempts in self._outage:
            raise ConnectionLostError("not connected at the moment", where="head")
        return socket.create_connection(("127.0.0.1", self._port))


def test_a_tunnel_that_breaks_costs_no_line(batch: Batch, serve: Serve) -> None:
    batch.ask(*(f"question {n}" for n in range(50)))
    server = serve()
    dialer = Broken(int(server.url.rpartition(":")[2]), range(30))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ChannelForwarder(dialer, [Forward("API", ("head", 1), port)]):
        summary = batch.run(
            f"http://127.0.0.1:{port}", concurrency=4, tries=Tries(retries=0, backoff=0.01)
        )
    assert (summary.ok, summary.failed) == (50, 0)
    assert summary.retried["connection"] == 29


def test_a_way_that_is_gone_for_good_ends_the_run(batch: Batch, serve: Serve) -> None:
    def check() -> None:
        raise ConnectionLostError("the key changed", where="head")

    @contextmanager
    def connect() -> Iterator[tuple[Target, Callable[[], None]]]:
        yield Target(serve(delay=60).url, ""), check

    batch.ask("one")
    with pytest.raises(ConnectionLostError, match="the key changed"):
        batch.run(connect)
    assert batch.results() == []


def test_a_wrong_key_fails_no_line(batch: Batch, serve: Serve) -> None:
    batch.ask(*["always:401"] * 5)
    server = serve()
    with pytest.raises(AuthError, match="responds with 401"):
        batch.run(server.url)
    assert batch.results() == []


def test_order_is_that_of_the_input_on_request(batch: Batch, serve: Serve) -> None:
    batch.ask(*(f"question {n}" for n in range(400)))
    server = serve(faults=30)
    batch.run(server.url)
    unordered = batch.results()
    batch.run(nowhere, order=True)
    ordered = batch.results()
    assert [said(r) for r in ordered] == [f"question {n}" for n in range(400)]
    assert ordered != unordered and sorted(map(str, ordered)) == sorted(map(str, unordered))


def test_a_first_part_and_then_the_rest(batch: Batch, serve: Serve) -> None:
    batch.ask(*(f"question {n}" for n in range(30)))
    server = serve()
    assert batch.run(server.url, limit=10).lines == 10
    assert sorted(said(r) for r in batch.results()) == sorted(f"question {n}" for n in range(10))
    summary = batch.run(server.url)
    assert (summary.lines, summary.before, summary.ok) == (30, 10, 30)
    assert len(server.finish()) == 30


@pytest.mark.parametrize("cut", [1, 20, 90, 117])
def test_a_torn_last_line_is_done_again(batch: Batch, serve: Serve, cut: int) -> None:
    batch.ask("one", "two", "three")
    server = serve()
    batch.run(server.url, concurrency=1)
    whole = batch.output.read_bytes()
    batch.output.write_bytes(whole[:-cut])
    batch.run(server.url)
    assert [said(r) for r in batch.results()] == ["one", "two", "three"]
    assert [call["text"] for call in server.finish()] == ["one", "two", "three", "three"]


def test_an_output_torn_in_its_first_line_begins_anew(batch: Batch, serve: Serve) -> None:
    batch.ask("one")
    batch.output.write_bytes(b'{"id": "bat')
    assert batch.run(serve().url).ok == 1
    assert len(batch.results()) == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"my notes", "line 1 is not a batch result"),
        (b"my notes\n", "line 1 is not a batch result"),
        (b'{"id": "batch_req_1", "custom_id": "a"}\nmore\n', "line 1 is not a batch result"),
    ],
)
def test_a_file_of_something_else_is_left_alone(batch: Batch, content: bytes, what: str) -> None:
    batch.ask("one")
    batch.output.write_bytes(content)
    with pytest.raises(UsageError, match=what):
        batch.run(nowhere)
    assert batch.output.read_bytes() == content


@pytest.mark.parametrize("line", [2, 9, 10**17])
def test_another_process_tells_no_result_of_a_line_that_the_input_has_not(
    batch: Batch, line: int
) -> None:
    stamp = Fingerprint("0" * 12, "0" * 8)
    with Ledger(batch.output, stamp, 1) as ledger:
        content = json.dumps({"id": stamp.id(line), "error": None}).encode() + b"\n"
        with pytest.raises(RayclusterError, match="not a result"):
            ledger.take(content)
    assert batch.output.read_bytes() == b""


def test_results_of_another_input_or_other_options_are_left_alone(
    batch: Batch, serve: Serve
) -> None:
    batch.ask("one", "two")
    batch.run(serve().url)
    before = batch.output.read_bytes()
    with pytest.raises(UsageError, match="a different --model"):
        batch.run(nowhere, shape=RequestShape(model="other"))
    batch.ask("one", "three")
    with pytest.raises(UsageError, match="another input"):
        batch.run(nowhere)
    assert batch.output.read_bytes() == before


def test_strict_sends_nothing_when_a_line_is_bad(batch: Batch) -> None:
    batch.write([{"prompt": "one"}, '{"prompt": ', {"prompt": ""}])
    with pytest.raises(UsageError, match=r"line 2 is not a request(.|\n)*line 3 is not a request"):
        batch.run(nowhere, strict=True)
    assert batch.output.read_bytes() == b""


def test_a_custom_id_on_two_lines_is_refused(batch: Batch) -> None:
    batch.write(
        [
            {"custom_id": "a", "prompt": "1"},
            {"prompt": "2"},
            {"custom_id": "a", "prompt": "3"},
            {"custom_id": "line-2", "prompt": "4"},
        ]
    )
    with pytest.raises(UsageError) as caught:
        batch.run(nowhere, limit=1)
    assert "2 custom_ids" in caught.value.what
    assert "'a' on lines 1, 3" in caught.value.what
    assert "'line-2' on lines 2, 4" in caught.value.what


def test_a_refused_line_keeps_its_id_and_counts_among_the_duplicates(
    batch: Batch, serve: Serve
) -> None:
    bad = {"custom_id": "mine", "prompt": ""}
    batch.write([bad, '{"custom_id": "torn", "prompt": "x', {"custom_id": "fine", "prompt": "1"}])
    with pytest.raises(RayclusterError, match="2 of 3 lines failed"):
        batch.run(serve().url)
    failed = {r["custom_id"]: bool(r["error"]) for r in batch.results()}
    assert failed == {"mine": True, "torn": True, "fine": False}
    batch.output.unlink()
    batch.write([bad, {"custom_id": "mine", "prompt": "1"}])
    with pytest.raises(UsageError, match="'mine' on lines 1, 2"):
        batch.run(nowhere)


def test_what_is_no_id_is_refused_before_anything_is_sent(batch: Batch) -> None:
    values = (1.0, 1.5, None, True, "", ["a"], {"a": 1})
    batch.write([{"custom_id": value, "prompt": "1"} for value in values])
    with pytest.raises(UsageError) as caught:
        batch.run(nowhere)
    assert "line 1: custom_id is 1.0" in caught.value.what
    assert "line 3: custom_id is null" in caught.value.what
    assert "2 more lines" in caught.value.what
    assert not batch.results()


def test_a_table_is_sent_by_its_column_and_goes_on_by_it(batch: Batch, serve: Serve) -> None:
    batch.write(["custom_id,instruction,max_tokens", "a,once:400,4", 'b,"two, please",', "c,3,"])
    with pytest.raises(UsageError, match="looks like a table row"):
        batch.run(nowhere, shape=RequestShape())
    server = serve()
    shape = RequestShape(column="instruction")
    with pytest.raises(RayclusterError, match="1 of 3 lines failed"):
        batch.run(server.url, shape=shape)
    with pytest.raises(UsageError, match="a different --model, --endpoint"):
        batch.run(nowhere, shape=RequestShape(column="custom_id"))
    batch.run(server.url, shape=shape, retry_errors=True)
    assert {r["custom_id"]: said(r) for r in batch.results()} == {
        "a": "once:400",
        "b": "two, please",
        "c": "3",
    }
    bodies = {call["text"]: call["body"] for call in server.finish()}
    assert bodies["once:400"]["max_tokens"] == 4 and "max_tokens" not in bodies["3"]


@pytest.mark.parametrize("content", ["{}\n{}\n", "[\n  {},\n  {}\n]", "{}{}"])
def test_json_in_any_layout_is_sent_once(batch: Batch, serve: Serve, content: str) -> None:
    items = [json.dumps({"custom_id": name, "prompt": name}, indent=1) for name in ("a", "b")]
    batch.input.write_bytes(content.replace("{}", "%s").__mod__(tuple(items)).encode("utf-16"))
    batch.run(serve().url, order=True)
    assert [(r["custom_id"], said(r)) for r in batch.results()] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "has no lines"),
        (b"\n\n", "has no lines"),
        (b"[]", "has no lines"),
        (b"prompt\n", "looks like a table row"),
        (b'{"x": 1}\n', "none of its 1 lines"),
        (gzip.compress(b"one\n" * 999, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_an_input_that_cannot_be_is_refused(batch: Batch, content: bytes, what: str) -> None:
    batch.input.write_bytes(content)
    with pytest.raises(UsageError, match=what):
        batch.run(nowhere)


def test_gzip_blank_lines_and_marks_of_other_systems(batch: Batch, serve: Serve) -> None:
    batch.input.write_bytes(
        gzip.compress(b'\xef\xbb\xbf{"prompt": "one"}\r\n\r\n"two"\n\n\n"last"')
    )
    batch.run(serve().url)
    assert {r["custom_id"]: said(r) for r in batch.results()} == {
        "line-1": "one",
        "line-3": "two",
        "line-6": "last",
    }


def test_one_output_has_one_writer(batch: Batch) -> None:
    batch.ask("one")
    with Ledger(batch.output, Fingerprint("0" * 12, "0" * 8), 1), pytest.raises(LockedError):
        batch.run(nowhere)


def test_the_input_is_not_the_output(batch: Batch) -> None:
    batch.ask("one")
    batch.output.symlink_to(batch.input)
    with pytest.raises(UsageError, match="is the input"):
        batch.run(nowhere)
    assert batch.input.read_text() == '{"prompt": "one"}\n'


def test_json_is_one_object_and_all_that_is_printed(batch: Batch, serve: Serve) -> None:
    batch.ask("one", "once:400")
    with pytest.raises(RayclusterError):
        batch.run(serve().url, json=True, tries=QUICK)
    summary = json.loads(batch.said.getvalue())
    assert (summary["schema"], summary["kind"]) == (1, "batch")
    assert [summary[name] for name in ("lines", "ok", "failed", "left")] == [2, 1, 1, 0]
