import itertools

import pytest

from raycluster.bench.limits import parse_bounds
from raycluster.bench.record import Failure, RequestRecord
from raycluster.bench.stats import distribution, max_in_flight, measure, percentile


def record(
    sent: float = 0.0,
    events: tuple[float, ...] = (0.1, 0.2, 0.3),
    *,
    intended: float | None = None,
    tokens: int | None = 3,
    failure: Failure | None = None,
    cached: int | None = None,
) -> RequestRecord:
    """Return a record whose events came so many seconds after sending."""
    at = [sent + event for event in events]
    return RequestRecord(
        id="x",
        line=1,
        repeat=0,
        intended=sent if intended is None else intended,
        sent=sent,
        end=at[-1] + 0.01,
        first_event=at[0],
        first_token=at[0],
        last_token=at[-1],
        last_event=at[-1],
        gaps=tuple(b - a for a, b in itertools.pairwise(at)),
        input_tokens=10,
        cached_tokens=cached,
        output_tokens=tokens,
        status=200,
        failure=failure,
    )


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.5),
        ([1.0, 2.0, 3.0, 4.0], 25, 1.75),
        ([1.0, 2.0, 3.0, 4.0], 95, 3.85),
        ([10.0, 20.0, 30.0, 40.0, 50.0], 90, 46.0),
        ([10.0, 20.0, 30.0], 0, 10.0),
        ([10.0, 20.0, 30.0], 100, 30.0),
    ],
)
def test_percentiles_are_linear(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_distribution_by_hand() -> None:
    spread = distribution([4.0, 2.0, 8.0, 6.0])
    assert spread is not None
    assert (spread.count, spread.mean, spread.min, spread.max) == (4, 5.0, 2.0, 8.0)
    assert spread.std == pytest.approx(5**0.5)
    assert spread.p50 == 5.0


def test_distribution_of_nothing_is_none() -> None:
    assert distribution([]) is None


def test_latencies_follow_the_definitions_of_vllm() -> None:
    measures = measure([record(1.0, (0.5, 0.7, 1.1), tokens=3)])
    assert measures.ttft_ms is not None and measures.ttft_ms.mean == pytest.approx(500)
    assert measures.e2el_ms is not None and measures.e2el_ms.mean == pytest.approx(1100)
    assert measures.tpot_ms is not None and measures.tpot_ms.mean == pytest.approx(300)
    assert measures.itl_ms is not None and measures.itl_ms.count == 2
    assert (measures.itl_ms.min, measures.itl_ms.max) == pytest.approx((200, 400))


def test_latency_from_the_intended_start_includes_the_wait_in_the_client() -> None:
    measures = measure([record(1.0, (0.5,), intended=0.8)])
    assert measures.ttft_from_intended_ms is not None
    assert measures.ttft_from_intended_ms.mean == pytest.approx(700)
    assert measures.client_delay_ms is not None
    assert measures.client_delay_ms.mean == pytest.approx(200)


def test_throughputs_count_answers_over_the_whole_time() -> None:
    measures = measure([record(0.0, (0.99,)), record(0.0, (1.99,))])
    assert measures.duration == pytest.approx(2.0)
    assert measures.request_throughput == pytest.approx(1.0)
    assert measures.output_throughput == pytest.approx(3.0)
    assert measures.total_token_throughput == pytest.approx(13.0)


def test_failures_count_as_such_and_nowhere_else() -> None:
    records = [
        record(),
        record(0.0, (9.0,), failure="truncated"),
        record(0.0, (9.0,), failure="timeout"),
        record(0.0, (9.0,), failure="timeout"),
    ]
    measures = measure(records)
    assert (measures.completed, measures.failed, measures.error_rate) == (1, 3, 0.75)
    assert measures.errors == {"timeout": 2, "truncated": 1}
    assert measures.total_output_tokens == 3
    assert measures.ttft_ms is not None and measures.ttft_ms.count == 1


def test_all_failed_gives_no_latency() -> None:
    measures = measure([record(failure="connect")])
    assert measures.ttft_ms is None and measures.total_output_tokens is None
    assert measures.request_throughput == 0


def test_events_of_several_tokens_have_gaps_but_no_inter_token_latency() -> None:
    measures = measure([record(tokens=12)])
    assert measures.tokens_per_event == pytest.approx(4)
    assert measures.itl_ms is None
    assert measures.event_gap_ms is not None and measures.event_gap_ms.count == 2
    assert measures.tpot_ms is not None and measures.tpot_ms.mean == pytest.approx(200 / 11)


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    measures = measure([record(0.0, (0.1,), tokens=1)])
    assert measures.tpot_ms is None
    assert measures.ttft_ms is not None


def test_tokens_stay_uncounted_when_one_answer_lacks_usage() -> None:
    measures = measure([record(), record(tokens=None)])
    assert measures.total_output_tokens is None and measures.output_throughput is None


def test_in_flight_counts_overlaps_and_not_neighbours() -> None:
    apart = [record(0.0, (0.99,)), record(1.0, (0.99,))]
    assert max_in_flight(apart) == 1
    assert max_in_flight([*apart, record(0.5, (1.0,))]) == 2


def test_a_record_comes_back_from_its_line() -> None:
    before = record(1.25, (0.5, 0.75), failure="protocol", cached=4)
    assert RequestRecord.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    ("bounds", "good"),
    [
        ("ttft<101ms", 2),
        ("ttft<=99ms", 0),
        ("tpot<50ms", 1),  # an answer of one token has no time between tokens
        ("tpot<0.1s,e2el<300ms", 2),
        ("ttft<1s,e2el<299ms", 0),
    ],
)
def test_goodput_counts_answers_that_keep_every_bound(bounds: str, good: int) -> None:
    records = [record(), record(sent=2.0, tokens=1), record(sent=3.0, failure="timeout")]
    measures = measure(records, parse_bounds(bounds))
    assert measures.request_goodput == pytest.approx(good / measures.duration)


def test_no_goodput_without_bounds() -> None:
    assert measure([record()]).request_goodput is None
