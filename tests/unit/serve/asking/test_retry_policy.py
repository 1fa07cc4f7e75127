"""What answers mean, and when a line is due again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from raycluster.serve.asking.result import AskedLine, Fingerprint, Reply, Result, UnansweredError
from raycluster.serve.asking.retry_policy import Retry, decide, failed, unanswered

JOB = AskedLine(7, 'a"b', "/v1/chat/completions", b"{}")
STAMP = Fingerprint("0123456789ab", "01234567")
NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def written(result: Result) -> dict[str, Any]:
    content = result.encode(STAMP)
    assert content.endswith(b"}\n") and content.count(b"\n") == 1
    return dict(json.loads(content))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1}',
        b' {"a":\r\n 1}\n',
        '{"a": "\u2028 \\n é"}'.encode(),
        b'{"a": "\\", \\"error\\": null}"}',
        b'{"a": "NaN, \\" -Infinity", "b": 1e999}',
    ],
)
def test_an_answer_is_kept_as_it_was_sent_on_one_line(body: bytes) -> None:
    result = decide(JOB, Reply(200, body, {"x-request-id": "r\x1b1"}), NOW)
    assert isinstance(result, Result)
    assert written(result) == {
        "id": "batch-0123456789ab-01234567-7",
        "custom_id": 'a"b',
        "response": {"status_code": 200, "request_id": "r 1", "body": json.loads(body)},
        "error": None,
    }


def test_what_python_alone_takes_for_json_is_written_as_json() -> None:
    body = b'\xef\xbb\xbf{"a": [NaN, -Infinity,\n "NaN"], "b": Infinity}'
    result = decide(JOB, Reply(200, body), NOW)
    assert isinstance(result, Result)
    line = result.encode(STAMP)
    assert b'{"a": [null, null,  "NaN"], "b": null}' in line and line.count(b"\n") == 1


@pytest.mark.parametrize("status", [200, 401, 400, 500])
@pytest.mark.parametrize("said", ["sk-secret-1", "\\u0073k-secret-1", "x" * 286 + "sk-secret-1"])
def test_a_key_that_is_said_back_is_not_told(status: int, said: str) -> None:
    body = f'{{"error": {{"message": "{said}"}}}}'.encode()
    reply = Reply(status, body, {"x-request-id": "sk-secret-1"}, ("sk-secret-1",))
    outcome = decide(JOB, reply, NOW)
    told = outcome.detail if isinstance(outcome, Retry) else str(outcome.error) + outcome.request_id
    assert "secret" not in told


@pytest.mark.parametrize("code", ["4" * 5000, "4000", "\u0665\u0660\u0660", None, [500], "5e2"])
def test_a_code_that_is_no_status_is_none(code: object) -> None:
    result = decide(JOB, Reply(200, json.dumps({"error": {"code": code}}).encode()), NOW)
    assert isinstance(result, Result) and result.error and result.error[0] == "error_in_answer"


@pytest.mark.parametrize(
    "wait",
    ["9" * 400, "\u00b2", "Thu, 01 Jan 1970 00:00:00 +99999999999", "Fri, 31 Dec 9999 -9999"],
)
def test_a_wish_to_wait_that_is_none_harms_nothing(wait: str) -> None:
    outcome = decide(JOB, Reply(503, b"", {"retry-after": wait}), NOW)
    assert isinstance(outcome, Retry) and outcome.wait in (None, 3600.0)


def test_an_error_too_deep_to_write_is_said() -> None:
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    body = json.dumps({"error": deep}).encode()
    told = _at_depth(60, lambda: decide(JOB, Reply(400, body), NOW))
    assert isinstance(told, Result) and told.error


def _at_depth(depth: int, call: Callable[[], object]) -> object:
    return call() if not depth else _at_depth(depth - 1, call)


@pytest.mark.parametrize(
    ("status", "away", "overloaded"),
    [
        (408, False, True),
        (409, False, False),
        (429, True, True),
        (500, False, False),
        (502, True, True),
        (503, True, True),
        (504, True, True),
    ],
)
def test_is_due_again(status: int, away: bool, overloaded: bool) -> None:
    outcome = decide(JOB, Reply(status, b"oops"), NOW)
    assert isinstance(outcome, Retry)
    assert (outcome.code, outcome.away, outcome.overloaded) == (
        f"http_{status}",
        away,
        overloaded,
    )
    assert outcome.detail == f"{status}: oops"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"a": ', b"\xff\xfe{}", b"[" * 9999])
def test_an_answer_that_is_no_json_object_is_due_again(body: bytes) -> None:
    outcome = decide(JOB, Reply(200, body), NOW)
    assert isinstance(outcome, Retry)
    assert (outcome.code, outcome.away) == ("protocol", False)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no"}},
        {"error": "no", "choices": []},
        {"error": None},
        {"error": {}},
        {"object": "error", "message": "no", "type": "BadRequestError", "code": 400},
        {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}},
        {"object": "response", "status": "failed", "error": {"code": "x", "message": "no"}},
        {"object": "response", "status": "cancelled", "error": None, "output": []},
        {"object": "chat.completion", "choices": [{"error": {"message": "no"}}]},
        {"choices": [{"finish_reason": "stop"}, {"finish_reason": "error", "text": ""}]},
        {"error": {"message": "no", "code": "422"}},
    ],
)
def test_an_error_with_status_200_is_no_answer(body: dict[str, Any]) -> None:
    result = decide(JOB, Reply(200, json.dumps(body).encode()), NOW)
    assert isinstance(result, Result)
    line = written(result)
    assert line["error"]["code"] == "error_in_answer"
    assert line["response"]["status_code"] == 200 and line["response"]["body"] == body


@pytest.mark.parametrize(
    ("body", "away"),
    [
        ({"error": {"message": "slow down", "code": 429}}, True),
        ({"object": "error", "message": "no", "code": 503}, True),
        ({"error": {"message": "no", "status": "500"}}, False),
    ],
)
def test_an_error_with_status_200_is_due_again_where_its_code_says_so(
    body: dict[str, Any], away: bool
) -> None:
    outcome = decide(JOB, Reply(200, json.dumps(body).encode()), NOW)
    assert isinstance(outcome, Retry)
    assert outcome.away == away and outcome.detail.startswith("200, and yet: ")


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "object": "response", "status": "completed", "output": []},
        {"object": "response", "status": "incomplete", "error": None},
        {"object": "chat.completion", "choices": [{"finish_reason": "length"}]},
        {"object": "list", "data": [], "error": ""},
        {"choices": None},
        {"type": "message", "content": []},
    ],
)
def test_a_field_called_error_makes_no_error(body: dict[str, Any]) -> None:
    result = decide(JOB, Reply(200, json.dumps(body).encode()), NOW)
    assert isinstance(result, Result) and result.error is None


@pytest.mark.parametrize("status", [301, 400, 404, 405, 413, 422])
def test_is_an_error_for_good(status: int) -> None:
    body = b'{"error": {"message": "too\\nlong"}}'
    result = decide(JOB, Reply(status, body), NOW)
    assert isinstance(result, Result)
    line = written(result)
    message = f"{status}: too long"
    assert line["error"] == {"code": f"http_{status}", "message": message, "line": 7}
    assert line["response"] == {
        "status_code": status,
        "request_id": "",
        "body": {"error": {"message": "too\nlong"}},
    }


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("99999", 3600.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_in_both_its_forms(value: str, wait: float | None) -> None:
    outcome = decide(JOB, Reply(503, b"", {"retry-after": value}), NOW)
    assert isinstance(outcome, Retry)
    assert outcome.wait == wait


@pytest.mark.parametrize(
    ("code", "reached", "away", "overloaded"),
    [
        ("connection", False, True, True),
        ("truncated", True, False, False),
        ("timeout", True, False, True),
    ],
)
def test_no_answer(code: str, reached: bool, away: bool, overloaded: bool) -> None:
    outcome = unanswered(UnansweredError(code, "it\nbroke", reached=reached))
    assert (outcome.away, outcome.overloaded) == (away, overloaded)
    line = written(failed(JOB, outcome, 3))
    assert line["response"] is None
    assert line["error"] == {"code": code, "message": "it broke (after 3 attempts)", "line": 7}
