"""What is made of answers, whatever they are."""

from __future__ import annotations

import pytest

from raycluster.bench.answer import IncompleteAnswerError
from raycluster.bench.client import _body_text, _Exchange
from raycluster.bench.schedule import BenchRequest
from raycluster.openai_client.prompts import Prompt
from raycluster.serve.asking.sender import Room

EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff", b"", b"9" * 5000])
def test_any_body_of_a_refusal_can_be_shown(body: bytes) -> None:
    assert len(_body_text(body)) <= 2000
    _body_text(body).encode()


def exchange(room: Room, *, streams: bool) -> _Exchange:
    begun = _Exchange(lambda: 0.0, 0.0, room, streams=streams)
    begun.begun(200, {"content-type": "text/event-stream" if streams else "application/json"})
    return begun


@pytest.mark.parametrize(
    ("streams", "piece"),
    [(False, b"x" * 1000), (True, b"data: " + b"x" * 1000), (True, b"data\n" * 100), (True, EVENT)],
)
def test_answers_under_way_share_what_they_may_hold(streams: bool, piece: bytes) -> None:
    room = Room(100_000)
    first = exchange(room, streams=streams)
    with pytest.raises(IncompleteAnswerError, match="together"):
        for _ in range(10_000):
            first.data(piece)
    first.forget()
    exchange(room, streams=streams).data(piece)


def test_a_key_that_is_said_back_is_in_no_record() -> None:
    failure = IncompleteAnswerError("http_status", "401: Incorrect API key provided: sk-secret-1")
    ended = exchange(Room(1000), streams=True)
    ended.data(b'data: {"choices": [{"finish_reason": "sk-secret-1", "text": "a"}]}\n\n')
    job = BenchRequest(Prompt("1", 1, "/v1/completions", {}), 0)
    record = ended.record(job, 0.0, 0.0, failure, ("sk-secret-1",))
    assert "secret" not in repr(record) and record.detail.endswith("provided: ***")
