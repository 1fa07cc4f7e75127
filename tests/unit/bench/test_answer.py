import json
from typing import Any

import pytest

from raycluster.bench.answer import IncompleteAnswerError, StreamedAnswer
from raycluster.bench.sse import ServerEvent

DONE = ServerEvent(b"[DONE]")


def event(**message: Any) -> ServerEvent:
    return ServerEvent(json.dumps(message).encode())


def delta(**fields: Any) -> ServerEvent:
    return event(choices=[{"index": 0, "delta": fields}])


def test_keeps_apart_first_event_first_text_and_usage() -> None:
    answer = StreamedAnswer()
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    events = [
        delta(role="assistant", content=""),
        delta(content="a"),
        event(choices=[{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]),
        event(choices=[], usage=usage),
        DONE,
    ]
    for time, item in enumerate(events, start=1):
        answer.take(item, float(time))
    answer.finish()
    assert (answer.first_event, answer.first_token) == (1.0, 2.0)
    assert (answer.last_event, answer.last_token) == (3.0, 3.0)
    assert answer.gaps == [1.0, 1.0]
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == (5, 2, 4)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "item",
    [
        delta(content="a"),
        delta(reasoning_content="a"),
        delta(tool_calls=[{"index": 0}]),
        event(choices=[{"text": "a"}]),
    ],
)
def test_anything_that_the_model_wrote_is_a_token(item: ServerEvent) -> None:
    answer = StreamedAnswer()
    answer.take(item, 1.0)
    assert answer.first_token == 1.0


@pytest.mark.parametrize(
    ("item", "failure", "detail"),
    [
        (event(error={"message": "out of memory", "code": 500}), "stream_error", "out of memory"),
        (event(error="boom"), "stream_error", "boom"),
        (event(error="two\nlines \x1b[31mred"), "stream_error", "two lines [31mred"),
        (ServerEvent(b'{"detail": 1}', b"error"), "stream_error", "detail"),
        (ServerEvent(b"{"), "protocol", "not JSON"),
        (ServerEvent(b"\xff"), "protocol", "not JSON"),
        (ServerEvent(b"7"), "protocol", "not an object"),
        (event(choices=["a"]), "protocol", "a choice is not an object"),
    ],
)
def test_an_event_can_end_the_answer(item: ServerEvent, failure: str, detail: str) -> None:
    with pytest.raises(IncompleteAnswerError) as caught:
        StreamedAnswer().take(item, 0.0)
    assert caught.value.failure == failure
    assert detail in caught.value.detail


def test_an_answer_needs_its_end_and_something_in_it() -> None:
    cut, empty = StreamedAnswer(), StreamedAnswer()
    cut.take(delta(content="a"), 0.0)
    empty.take(DONE, 0.0)
    for answer, failure in ((cut, "truncated"), (empty, "protocol")):
        with pytest.raises(IncompleteAnswerError) as caught:
            answer.finish()
        assert caught.value.failure == failure


def test_odd_usage_is_not_counted() -> None:
    answer = StreamedAnswer()
    answer.take(event(choices=[], usage={"prompt_tokens": "5", "completion_tokens": None}), 0.0)
    answer.take(event(choices=[], usage=[]), 0.0)
    assert answer.input_tokens is None and answer.output_tokens is None


@pytest.mark.parametrize("count", [-1, 10**400, True, "7", None, 2.5, [], float("inf")])
def test_counts_that_no_answer_has_are_none(count: object) -> None:
    answer = StreamedAnswer()
    usage = {"prompt_tokens": count, "completion_tokens": count, "prompt_tokens_details": count}
    answer.take(event(choices=[{"text": "a"}], usage=usage), 1.0)
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == (None, None, None)


@pytest.mark.parametrize("reason", [{}, [1], 7, {"a": []}, True])
def test_a_reason_that_is_no_word_is_none(reason: object) -> None:
    answer = StreamedAnswer()
    answer.take(event(choices=[{"text": "a", "finish_reason": reason}]), 1.0)
    assert answer.finish_reason is None
