"""The search for the highest rate: it closes in from both sides, and ends."""

from __future__ import annotations

import pytest

from raycluster.bench.schedule import Open
from raycluster.bench.search import CLOSE, FEWEST, found, probe


def tried(start: float, most: float, duration: float | None = 30.0) -> list[tuple[float, bool]]:
    """Run the search against a server that keeps its limits up to `most`."""
    search = probe(Open(start, burstiness=0.5), duration)
    shape = next(search, None)
    tries: list[tuple[float, bool]] = []
    while shape is not None:
        assert shape.burstiness == 0.5
        tries.append((shape.rate, shape.rate <= most))
        try:
            shape = search.send(tries[-1][1])
        except StopIteration:
            shape = None
    return tries


@pytest.mark.parametrize("start", [1.0, 7.0, 900.0])
@pytest.mark.parametrize("most", [1.0, 33.3, 8000.0])
def test_closes_in_on_the_highest_rate(start: float, most: float) -> None:
    tries = tried(start, most)
    end = found(["ttft_p99<1s"], tries)
    assert end.kept is not None and end.missed is not None
    assert end.kept <= most < end.missed
    assert end.missed / end.kept <= CLOSE * 1.01  # rates are rounded to three digits
    assert len(tries) < 22


def test_gives_up_where_a_probe_would_send_too_few() -> None:
    tries = tried(4.0, 0.0, duration=10.0)
    assert [rate for rate, _ in tries] == [4.0, 2.0, FEWEST / 10.0]
    end = found(["ttft_p99<1s"], tries)
    assert (end.kept, end.missed) == (None, 1.0)
    assert str(end) == "found no rate that meets ttft_p99<1s"


def test_gives_up_where_nothing_is_too_much() -> None:
    end = found(["a<1s", "b<1s"], tried(1000.0, 1e9))
    assert end.kept == 64_000 and end.missed is None
    assert str(end) == "highest rate that meets a<1s and b<1s: 64000 requests/s"
