from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from raycluster.serve.engines.generation import Ask, Deliver, Detokenizer, Generator, Piece
from raycluster.serve.engines.sampling import Sampler


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def shown(data: bytes, *stop: str) -> tuple[str, bool, int]:
    """Feed one byte per token; return what was shown, whether it stopped and after how many."""
    detokenizer = Detokenizer(decode, stop)
    text, tokens = "", 0
    for byte in data:
        tokens += 1
        text += detokenizer.add(byte)
        if detokenizer.stopped is not None:
            break
    return text + detokenizer.rest(), detokenizer.stopped is not None, tokens


@pytest.mark.parametrize(
    ("data", "stop", "expected"),
    [
        ("plain", (), ("plain", False, 5)),
        ("grüße 日本", (), ("grüße 日本", False, 14)),
        ("one. two", (". ",), ("one", True, 5)),
        ("ab abc", ("abc",), ("ab ", True, 6)),
        ("end ab", ("abc",), ("end ab", False, 6)),
        ("aab", ("b", "ab"), ("a", True, 3)),
    ],
)
def test_text_and_stops(data: str, stop: tuple[str, ...], expected: tuple[str, bool, int]) -> None:
    assert shown(data.encode(), *stop) == expected


def test_never_shows_half_a_character_or_the_beginning_of_a_stop() -> None:
    detokenizer = Detokenizer(decode, ["END"])
    steps = [detokenizer.add(byte) for byte in "ü ENx".encode()]
    assert steps == ["", "ü", " ", "", "", "ENx"]


def test_a_text_is_not_read_again_and_again() -> None:
    """A long answer costs what a short one costs, for each of its tokens."""
    longest = 0

    def measured(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    detokenizer = Detokenizer(measured, ["never"])
    text = "".join(detokenizer.add(byte) for byte in "grüße ".encode() * 500)
    assert text + detokenizer.rest() == "grüße " * 500
    assert longest < 20


def test_what_is_no_text_is_shown_after_a_while() -> None:
    detokenizer = Detokenizer(decode, [])
    assert "\ufffd" in "".join(detokenizer.add(0xFF) for _ in range(40))


def test_a_stop_may_be_wanted_in_the_text_and_may_come_too_early() -> None:
    detokenizer = Detokenizer(decode, ["b"], include_stop=True)
    assert [detokenizer.add(byte, may_stop=at > 2) for at, byte in enumerate(b"abcb")] == [
        *("a", "b", "c", "b")
    ]
    assert detokenizer.stopped == "b"


class Scripted:
    """A runner whose generations are these bytes, one at a time, and then an error."""

    def __init__(self, deliver: Deliver, text: bytes) -> None:
        self.deliver = deliver
        self.text = text
        self.cancelled: list[str] = []

    def add(self, number: str, ask: Ask, sampler: Sampler) -> None:
        for byte in self.text[: ask.max_tokens]:
            self.deliver(number, byte)
        self.deliver(number, RuntimeError("the GPU is in error"))

    def cancel(self, number: str) -> None:
        self.cancelled.append(number)

    def check(self) -> None:
        """Be well."""

    def close(self) -> None:
        """Have nothing to end."""


def generated(text: bytes, ask: Ask) -> tuple[str, Piece, list[str]]:
    """Return the whole text, its last piece, and what was cancelled."""

    async def whole() -> tuple[str, Piece]:
        pieces = [piece async for piece in generator.stream(ask)]
        return "".join(piece.text for piece in pieces), pieces[-1]

    runners: list[Scripted] = []

    def make(deliver: Deliver) -> Scripted:
        runners.append(Scripted(deliver, text))
        return runners[0]

    generator = Generator(make, lambda ids, _: decode(ids))
    return *asyncio.run(whole()), runners[0].cancelled


@pytest.mark.parametrize(
    ("ask", "text", "last"),
    [
        (Ask([1], 3), "abc", (3, "length", None)),
        (Ask([1], 9, ends=(ord("c"),)), "ab", (3, "stop", None)),
        (Ask([1], 9, stop_ids=(ord("c"),)), "ab", (3, "stop", ord("c"))),
        (Ask([1], 9, stop_ids=(ord("c"),), include_stop=True), "abc", (3, "stop", ord("c"))),
        (Ask([1], 9, stop=("cd",)), "ab", (4, "stop", "cd")),
        (Ask([1], 9, stop=("cd",), include_stop=True), "abcd", (4, "stop", "cd")),
        (Ask([1], 9, stop=("c",), min_tokens=3), "abcdab", (7, "stop", "c")),
        (Ask([1], 3, stop=("cd",)), "abc", (3, "length", None)),
    ],
)
def test_how_a_generation_ends(ask: Ask, text: str, last: tuple[int, str, object]) -> None:
    found, piece, cancelled = generated(b"abcdabcdabcd", ask)
    assert (found, (piece.tokens, piece.finish, piece.reason)) == (text, last)
    assert cancelled == ["0"]


def test_what_fails_is_told_to_who_waits() -> None:
    with pytest.raises(RuntimeError, match="the GPU is in error"):
        generated(b"ab", Ask([1], 5))


def test_one_who_leaves_frees_the_place_at_once() -> None:
    runners: list[Scripted] = []

    def make(deliver: Deliver) -> Scripted:
        runners.append(Scripted(deliver, b"a"))
        runners[0].add = lambda number, *_: deliver(number, ord("a"))  # type: ignore[method-assign]
        return runners[0]

    async def leave() -> None:
        generator = Generator(make, lambda ids, _: decode(ids))
        async with aclosing(generator.stream(Ask([1], 9))) as pieces:
            await anext(pieces)
        assert runners[0].cancelled == ["0"]
        waiting = asyncio.ensure_future(_all(generator.stream(Ask([1], 9))))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    async def _all(pieces: object) -> None:
        async for _ in pieces:  # type: ignore[attr-defined]
            pass

    asyncio.run(leave())
    assert runners[0].cancelled == ["0", "1"]
