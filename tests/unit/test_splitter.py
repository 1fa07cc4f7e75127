"""From chunks to lines: whole, bounded, and at a cost that grows with the bytes alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.bench.sse import SseParser
from raycluster.errors import HostError
from raycluster.splitter import LineSplitter
from tests.unit.counted import Counted, worked


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"a\n\nb"])))
def test_lines_stay_whole_wherever_chunks_end(chunks: list[bytes]) -> None:
    splitter = LineSplitter(1_000)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()
    whole = b"".join(chunks).split(b"\n")
    assert lines == (whole if whole[-1] else whole[:-1])


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"a\n" + b"x" * 11) == [b"a", b"x" * 11]
    assert splitter.end() == []
    with pytest.raises(HostError, match=r"head: a line of its output is longer than"):
        LineSplitter(10, "head").feed(b"x" * 11)


@pytest.mark.parametrize("feed", [LineSplitter(2**30).feed, SseParser().feed])
def test_the_work_grows_with_the_bytes_alone(feed: Callable[[bytes], list[object]]) -> None:
    """4 MiB without a line end in pieces of 1 KiB: each byte is looked at a few times."""
    pieces, size = 4096, 1024
    with worked() as work:
        for _ in range(pieces):
            feed(Counted(b"x" * size))
        [line] = [*feed(Counted(b"\n")), *feed(Counted(b"data: end\n\n"))][:1]
    assert line
    assert pieces * size <= work() <= 4 * pieces * size
