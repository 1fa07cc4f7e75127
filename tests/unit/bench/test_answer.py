import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.bench.answer import IncompleteAnswerError, ServerEvent, SseParser, StreamedAnswer
from tests.unit.counted import Counted, worked

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


def parse(*chunks: bytes) -> list[ServerEvent]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_gives_an_event_with_its_blank_line_and_not_before() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [ServerEvent(b"a")]


def test_gives_several_events_of_one_chunk_in_order() -> None:
    assert parse(b"data: a\n\ndata: b\n\ndata: c") == [ServerEvent(b"a"), ServerEvent(b"b")]


def test_joins_data_lines_and_drops_one_space_only() -> None:
    assert parse(b"data:a\ndata:  b\ndata\n\n") == [ServerEvent(b"a\n b\n")]


def test_skips_comments_unknown_fields_and_events_without_data() -> None:
    assert parse(b": ping\n\nid: 7\nretry: 3\nevent: x\n\ndata: a\n\n") == [ServerEvent(b"a")]


def test_names_an_event_and_forgets_the_name_after_it() -> None:
    assert parse(b"event: error\ndata: a\n\ndata: b\n\n") == [
        ServerEvent(b"a", b"error"),
        ServerEvent(b"b"),
    ]


def test_line_separators_of_unicode_are_text() -> None:
    text = "one\u2028two\u2029three\u0085four\x0bfive\x0csix".encode()
    assert parse(b"data: " + text + b"\n\n") == [ServerEvent(text)]


def test_drops_a_byte_order_mark_at_the_start_only() -> None:
    mark = b"\xef\xbb\xbf"
    assert parse(mark + b"data: a\n\ndata: " + mark + b"\n\n") == [
        ServerEvent(b"a"),
        ServerEvent(mark),
    ]


def test_close_gives_what_only_lacks_its_blank_line() -> None:
    parser = SseParser()
    parser.feed(b"data: a\ndata: [DO")
    parser.feed(b"NE]")
    assert parser.close() == [ServerEvent(b"a\n[DONE]")]
    assert parser.close() == []


def test_refuses_an_event_without_end() -> None:
    parser = SseParser()
    chunk = b"data: " + b"x" * 1024 * 1024
    try:
        for _ in range(17):
            parser.feed(chunk)
    except ValueError as error:
        assert "16 MiB" in str(error)
    else:
        raise AssertionError("17 MiB were taken")


def test_a_long_event_in_small_pieces_is_looked_at_a_few_times_alone() -> None:
    parser, pieces, size = SseParser(), 4096, 1024
    with worked() as work:
        for piece in (b"data: ", *[b"x" * size] * pieces):
            assert parser.feed(Counted(piece)) == []
        [event] = parser.feed(Counted(b"\n\n"))
    assert len(event.data) == pieces * size
    assert pieces * size <= work() <= 4 * pieces * size


LINE = st.sampled_from([b"data: a", b"data:", b"data: \xe2\x80\xa8", b": c", b"", b"", b"event: e"])
END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINE, END), max_size=30), st.lists(st.integers(0, 400), max_size=40))
def test_any_cut_gives_what_no_cut_gives(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    whole = b"".join(line + end for line, end in lines)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(*pieces) == parse(whole)


@given(st.lists(st.tuples(LINE, END), max_size=30))
def test_line_ends_make_no_difference(lines: list[tuple[bytes, bytes]]) -> None:
    # An LF after a lone CR would be one line end; give each stream one kind only.
    streams = [b"".join(line + end for line, _ in lines) for end in (b"\n", b"\r\n", b"\r")]
    assert parse(streams[0]) == parse(streams[1]) == parse(streams[2])


TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)


@given(st.lists(TEXT, max_size=5))
def test_texts_come_back_byte_by_byte(texts: list[str]) -> None:
    whole = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    events = parse(*(whole[i : i + 1] for i in range(len(whole))))
    assert [event.data.decode() for event in events] == texts
