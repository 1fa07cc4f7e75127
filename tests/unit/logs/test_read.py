"""Reading several sources at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from raycluster.core.errors import HostError
from raycluster.logs.read import Line, LogRequest, read


@dataclass
class Says:
    """A source that says these lines, then fails, ends, or goes on in silence until its end."""

    label: str
    said: Sequence[bytes]
    error: HostError | None = None
    endless: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    def lines(self, asked: LogRequest) -> Iterator[Line | None]:
        try:
            yield from (Line(self.label, text) for text in self.said)
            while self.endless and asked.follow:
                self.closed.wait(0.01)
                yield None
            if self.error:
                raise self.error
        finally:
            self.closed.set()


def test_without_following_sources_come_one_after_the_other() -> None:
    sources = [Says("a", [b"1", b"2"]), Says("b", [b"3"]), Says("c", [])]
    told: list[str] = []
    assert [(x.label, x.text) for x in read(sources, LogRequest(), told.append)] == [
        ("a", b"1"),
        ("a", b"2"),
        ("b", b"3"),
    ]
    assert told == []


def test_a_source_that_fails_or_ends_is_told_of_and_ends_no_other() -> None:
    lost = HostError("is gone", where="a")
    lasting = Says("c", [b"2"], endless=True)
    told: list[str] = []
    lines = read(
        [Says("a", [b"1"], lost), Says("b", []), lasting], LogRequest(follow=True), told.append
    )
    assert {next(lines).text, next(lines).text} == {b"1", b"2"}
    lasting.endless = False  # it ends too, and with it all of them
    assert list(lines) == []
    assert sorted(told) == ["a: is gone", "b: end of its log", "c: end of its log"]


def test_all_that_failed_is_told_and_the_first_error_raised() -> None:
    told: list[str] = []
    sources = [Says(n, [b"1"], HostError("is gone", where=n)) for n in "ab"]
    lines = read(sources, LogRequest(follow=True), told.append)
    assert [next(lines).text, next(lines).text] == [b"1", b"1"]
    with pytest.raises(HostError, match="is gone"):
        next(lines)
    assert sorted(told) == ["a: is gone", "b: is gone"]


def test_one_of_several_that_failed_is_no_error() -> None:
    told: list[str] = []
    sources = [Says("a", [], HostError("is gone", where="a")), Says("b", [b"1"])]
    assert [x.text for x in read(sources, LogRequest(), told.append)] == [b"1"]
    assert told == ["a: is gone"]


def test_the_end_of_a_followed_log_is_told() -> None:
    told: list[str] = []
    assert list(read([Says("a", []), Says("b", [])], LogRequest(follow=True), told.append)) == []
    assert sorted(told) == ["a: end of its log", "b: end of its log"]


def test_readers_are_closed_when_nobody_reads_on() -> None:
    source = Says("a", [b"1"], endless=True)
    lines = read([source], LogRequest(follow=True), print)
    assert next(lines).text == b"1"
    lines.close()
    assert source.closed.is_set()
