"""From chunks to whole lines, and how these are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.errors import UsageError
from raycluster.logs.lines import LONGEST, View, Whole, pattern


@given(st.lists(st.binary(max_size=8)))
def test_lines_stay_whole_wherever_chunks_end(chunks: list[bytes]) -> None:
    whole = Whole()
    lines = [line for chunk in chunks for line in whole.feed(chunk)] + whole.end()
    data = b"".join(chunks)
    assert (
        lines
        == (data.split(b"\n") if not data.endswith(b"\n") else data[:-1].split(b"\n"))[: len(lines)]
    )
    assert b"\n".join(lines).rstrip(b"\n") == data.rstrip(b"\n")


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    whole = Whole()
    assert whole.feed(b"x" * (LONGEST + 1)) == [b"x" * (LONGEST + 1)]
    assert whole.end() == []


def test_a_label_stands_before_each_line() -> None:
    assert View(prefix=True).line("head/gateway", b"said\r") == b"head/gateway  said\n"
    assert View().line("head", b"said") == b"said\n"


def test_each_label_has_a_colour_of_its_own() -> None:
    view = View(prefix=True, colour=True)
    lines = [view.line(label, b"x") for label in ("a", "b", "a")]
    assert lines[0] == b"\x1b[36ma\x1b[0m  x\n"
    assert lines[1] == b"\x1b[33mb\x1b[0m  x\n"
    assert lines[2] == lines[0]


@pytest.mark.parametrize(
    ("text", "ignore_case", "line", "shown"),
    [
        ("err", False, b"an error", b"an error\n"),
        ("ERR", False, b"an error", None),
        ("ERR", True, b"an error", b"an error\n"),
        ("^an", False, b"\x1b[31man error", b"\x1b[31man error\x1b[0m\n"),
        ("", False, b"all", b"all\n"),
    ],
)
def test_grep_chooses_lines(text: str, ignore_case: bool, line: bytes, shown: bytes | None) -> None:
    assert View(grep=pattern(text, ignore_case=ignore_case)).line("a", line) == shown


def test_what_was_found_is_marked_on_a_terminal() -> None:
    view = View(colour=True, grep=pattern("r+"))
    assert view.line("a", b"\x1b[2merror\x1b[0m") == (b"e\x1b[1;31mrr\x1b[0mo\x1b[1;31mr\x1b[0m\n")


def test_a_wrong_expression_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--grep: '\(' is no regular expression"):
        pattern("(")
