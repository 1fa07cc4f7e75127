"""What laptop and job leave for each other, and how work is dealt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.serve.asking.result import AskedLine, Fingerprint
from raycluster.serve.asking.retrying_client import Tries
from raycluster.serve.offline.order import (
    JobState,
    Order,
    Shares,
    decode_job,
    encode_job,
    ranges,
)

ORDER = Order(Fingerprint("a" * 12, "b" * 8), Tries(timeout=5.0), "10.0.0.1", 8000, 64, 99)


def test_an_order_comes_back_as_it_was() -> None:
    assert Order.decode(ORDER.encode()) == ORDER


@given(
    st.integers(1), st.text(), st.text(), st.text().map(lambda text: text.encode("utf-8", "ignore"))
)
def test_a_request_is_one_line_and_comes_back_as_it_was(
    line: int, custom_id: str, path: str, content: bytes
) -> None:
    job = AskedLine(line, custom_id, path, content)
    encoded = encode_job(job)
    assert encoded.splitlines() == [encoded.removesuffix(b"\n")]
    assert decode_job(encoded) == job


def test_a_state_adds_what_actors_count() -> None:
    state = JobState()
    state.count(5, {"http_503": 1})
    state.count(3, {"http_503": 2, "timeout": 1})
    assert JobState.decode(state.encode()) == JobState(8, {"http_503": 3, "timeout": 1})
    assert JobState.decode(b"") == JobState()


@pytest.mark.parametrize(
    ("nodes", "concurrency", "shares"),
    [
        (1, 64, Shares(1, 64, 16, 16)),
        (3, 64, Shares(3, 22, 5, 18)),
        (4, 1024, Shares(4, 256, 64, 16)),
        (8, 2, Shares(2, 1, 1, 4)),
        (0, 1, Shares(1, 1, 1, 4)),
    ],
)
def test_shares(nodes: int, concurrency: int, shares: Shares) -> None:
    assert Shares.of(nodes, concurrency) == shares
    assert shares.actors * shares.limit >= concurrency
    assert shares.piece * shares.pieces >= 4 * shares.limit


@given(st.lists(st.binary(max_size=9)), st.integers(1, 5))
def test_ranges_cover_the_file(parts: list[bytes], piece: int) -> None:
    lines = [part.replace(b"\n", b"") + b"\n" for part in parts]
    whole = b"".join(lines)
    found = [whole[begin : begin + size] for begin, size in ranges(lines, piece)]
    assert b"".join(found) == whole
    assert [part.count(b"\n") for part in found[:-1]] == [piece] * (len(found) - 1)
