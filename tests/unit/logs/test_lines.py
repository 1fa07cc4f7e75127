"""From chunks to whole lines, and how these are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core.errors import UsageError
from raycluster.logs.lines import LONGEST, View, Whole, pattern
from tests.unit.counted import Counted, worked


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"a\n\nb"])))
def test_lines_stay_whole_wherever_chunks_end(chunks: list[bytes]) -> None:
    splitter = Whole()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()
    whole = b"".join(chunks).split(b"\n")
    assert lines == (whole if whole[-1] else whole[:-1])


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    whole = Whole()
    assert whole.feed(b"x" * (LONGEST + 1)) == [b"x" * (LONGEST + 1)]
    assert whole.end() == []


def test_a_long_line_in_small_pieces_is_looked_at_a_few_times_alone() -> None:
    whole, size = Whole(), 1024
    pieces = LONGEST // size
    with worked() as work:
        for _ in range(pieces):
            assert whole.feed(Counted(b"x" * size)) == []
        [line] = whole.feed(Counted(b"\n"))
    assert len(line) == pieces * size
    assert pieces * size <= work() <= 4 * pieces * size


def test_a_label_stands_before_each_line() -> None:
    assert View(prefix=True).line("head/gateway", b"said\r") == b"head/gateway  said\n"
    assert View().line("head", b"said") == b"said\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"\x1b[1mbold\x1b]0;title\x07", b"\x1b[1mbold\\x1b]0;title\\x07\x1b[0m\n"),
        (b"10%\r20%\r", b"10%\n20%\n"),
        (b"\x9b2J \xff \xc2\x9b \tend", b"\\x9b2J \\xff \\x9b \tend\n"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(said: bytes, shown: bytes) -> None:
    assert View().line("head", said) == shown


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
    with pytest.raises(UsageError, match=r"--grep: '\(' is not a valid regular expression"):
        pattern("(")
