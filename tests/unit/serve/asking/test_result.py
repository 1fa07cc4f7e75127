"""Packed answers, in whichever pieces they come."""

from __future__ import annotations

import gzip
import zlib

import pytest

from raycluster.serve.asking.result import CodingError, Unpacker

PLAIN = b'{"choices": []}' * 100
PACKED = {"gzip": gzip.compress(PLAIN, mtime=0), "deflate": zlib.compress(PLAIN), "identity": PLAIN}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("coding", "packed"),
    [*((name, name) for name in PACKED), ("x-gzip", "gzip"), ("", "identity"), (" GZip ", "gzip")],
)
def test_what_was_packed_comes_out(coding: str, packed: str, size: int) -> None:
    unpacker, content = Unpacker(coding), PACKED[packed]
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    assert b"".join(map(unpacker.feed, pieces)) == PLAIN
    unpacker.close()


def test_another_coding_is_refused() -> None:
    with pytest.raises(CodingError, match="packed by br"):
        Unpacker("br")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_damage_and_an_early_end_are_told_apart(coding: str) -> None:
    with pytest.raises(CodingError, match="damaged"):
        Unpacker(coding).feed(b"\xff" * 40)
    cut = Unpacker(coding)
    cut.feed(PACKED[coding][:-5])
    with pytest.raises(CodingError, match="too early"):
        cut.close()
    Unpacker(coding).close()  # without a body nothing is missing


def test_a_bomb_is_no_answer() -> None:
    with pytest.raises(CodingError, match="too large"):
        Unpacker("deflate").feed(zlib.compress(bytes(65 << 20)))
