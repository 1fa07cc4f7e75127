import pytest

from raycluster.bench.limits import parse_bounds, parse_limit, parse_limits
from raycluster.bench.record import RequestRecord
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
