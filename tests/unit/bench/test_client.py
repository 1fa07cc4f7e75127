"""What is made of an answer that is no stream."""

from __future__ import annotations

import pytest

from raycluster.bench.client import _body_text


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff", b"", b"9" * 5000])
def test_any_body_of_a_refusal_can_be_shown(body: bytes) -> None:
    assert len(_body_text(body)) <= 2000
    _body_text(body).encode()
