from __future__ import annotations

import pytest

from raycluster.serve.engines.generation import Detokenizer


def shown(data: bytes, *stop: str) -> tuple[str, bool, int]:
    """Feed one byte per token; return what was shown, whether it stopped and after how many."""
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), stop)
    text = ""
    for byte in data:
        text += detokenizer.add(byte)
        if detokenizer.stopped:
            break
    return text + detokenizer.rest(), detokenizer.stopped, detokenizer.tokens


@pytest.mark.parametrize(
    ("data", "stop", "expected"),
    [
        ("plain", (), ("plain", False, 5)),
        ("grüße 日本", (), ("grüße 日本", False, 14)),
        ("one. two", (". ",), ("one", True, 5)),
        ("ab abc", ("abc",), ("ab ", True, 6)),
        ("end ab", ("abc",), ("end ab", False, 6)),
        ("xyz", ("",), ("xyz", False, 3)),
        ("aab", ("b", "ab"), ("a", True, 3)),
    ],
)
def test_text_and_stops(data: str, stop: tuple[str, ...], expected: tuple[str, bool, int]) -> None:
    assert shown(data.encode(), *stop) == expected


def test_never_shows_half_a_character_or_the_beginning_of_a_stop() -> None:
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), ["END"])
    steps = [detokenizer.add(byte) for byte in "ü ENx".encode()]
    assert steps == ["", "ü", " ", "", "", "ENx"]
