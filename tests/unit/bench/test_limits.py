from __future__ import annotations

import pytest

from raycluster.bench.limits import (
    CLOSE,
    FEWEST,
    found,
    parse_bounds,
    parse_limit,
    parse_limits,
    probe,
)
from raycluster.bench.record import RequestRecord
from raycluster.bench.schedule import Open
from raycluster.bench.stats import measure
from raycluster.core.errors import UsageError

ANSWER = RequestRecord(
    id="x",
    line=1,
    repeat=0,
    intended=0.0,
    sent=0.0,
    end=2.0,
    first_event=1.0,
    last_event=2.0,
    gaps=(1.0,),
    input_tokens=6,
    output_tokens=4,
)
MEASURES = measure([ANSWER])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ttft_p95<3s", True),
        ("ttft_p95<1s", False),
        ("ttft_p95 <= 1000ms", True),
        ("ttft_median<1.5s", True),
        ("e2el_p99>1999999us", True),
        ("e2el_mean<0.02m", False),
        ("error_rate<1%", True),
        ("error_rate>0.5", False),
        ("request_throughput>=0.5", True),
        ("output_throughput>=2/s", True),
        ("total_token_throughput>5", False),
        ("duration<3s", True),
        ("completed>=1", True),
        ("itl_p50<3s", False),  # two tokens per event: not measured, so not kept
        ("event_gap_p50<3s", True),
        ("client_delay_max<1ms", True),
        ("ttft_from_intended_p95<2s", True),
    ],
)
def test_compares_in_the_unit_given(text: str, kept: bool) -> None:
    assert parse_limit(text).kept(MEASURES) is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a limit"),
        ("ttft_p95", "not a limit"),
        ("ttft_p95==3s", "not a limit"),
        ("ttft_p95<s", "not a limit"),
        ("ttft<3s", "'ttft' is not measured"),
        ("ttft_p42<3s", "'ttft_p42' is not measured"),
        ("ttft_count<3s", "'ttft_count' is not measured"),
        ("ttft_p95<3", "a time needs a unit"),
        ("ttft_p95<3%", "a time needs a unit"),
        ("error_rate<3s", "unit 's' does not fit"),
        ("ttft_p95<1.2.3s", "could not convert"),
    ],
)
def test_refuses_what_is_no_limit(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limit(text)
    assert message in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttft_p95<1s", "ttft_p95<1s: it is 1,000.00 ms"),
        ("error_rate>1%", "error_rate>1%: it is 0.00%"),
        ("itl_p50<1s", "itl_p50<1s: not measured"),
        ("output_throughput>9", "output_throughput>9: it is 2.00"),
    ],
)
def test_tells_the_figure_that_missed(text: str, sentence: str) -> None:
    assert parse_limit(text).miss(MEASURES) == sentence


@pytest.mark.parametrize("text", ["", "ttft>1s", "ttft_p99<1s", "tpot<5", "ttft<1s;e2el<2s"])
def test_refuses_what_is_no_bound_of_one_request(text: str) -> None:
    with pytest.raises(UsageError, match="is not valid") as caught:
        parse_bounds(text)
    assert caught.value.where == "--goodput"


def test_a_search_holds_latencies_from_when_requests_were_due() -> None:
    names = [limit.from_intended().name for limit in parse_limits("ttft_p99<1s,error_rate<1%")]
    assert names == ["ttft_from_intended", "error_rate"]


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
