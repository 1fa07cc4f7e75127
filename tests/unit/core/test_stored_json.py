"""What comes from elsewhere is data: any bytes are a value of the right shape, or one sentence."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import pytest

from raycluster.core.errors import NewerRecordError, RecordError
from raycluster.core.stored_json import decode


@dataclass(frozen=True)
class Shape:
    name: str
    count: int = 0
    share: float = 0.0
    more: dict[str, str] = field(default_factory=dict)


def read(content: bytes | str, schema: int | None = None) -> Shape:
    return decode(content, Shape, what="the record", where="box", schema=schema)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[", b"true", b"[]", b"[{}]", b"{}", b"null", b"1", b'"x"', b"{cut", b"\xff\xfe"),
        *(b'{"name": 1}', b'{"name": "x", "count": "1"}', b'{"name": "x", "count": true}'),
        *(b'{"name": "x", "count": 1.5}', b'{"name": "x", "count": null}'),
        b'{"name": "x", "share": NaN}',
        b'{"name": "x", "share": 1e999}',
        b'{"name": "x", "other": [-Infinity]}',
        b'{"name": "x", "other": 1e999}',
        b'{"name": "x", "count": ' + b"9" * 5000 + b"}",
        b'{"name": "\\ud800"}',
        "\ud800",
        '{"name": "\ud800"}',
        b'{"name": "x", "more": {"a": {}}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"name": "x", "more": {"\x1b]52;c;aGk=\x07": 1}}',
        b'{"name": "' + b"x" * (1 << 20) + b'"}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_damaged_is_one_sentence(content: bytes | str) -> None:
    with pytest.raises(RecordError) as caught:
        read(content)
    said = str(caught.value)
    assert said.startswith("box: the record cannot be read: ")
    assert said.isprintable()
    assert len(said) < 300


def test_what_is_whole_is_read_without_what_is_not_known() -> None:
    content = '{"name": "é", "count": 3, "share": 1, "colour": "red"}'
    assert read(content) == read(content.encode()) == Shape("é", 3, 1.0)


@pytest.mark.parametrize(
    "content", ["[]", "true", "{}", '{"schema": "1"}', '{"schema": true}', '{"schema": 0}']
)
def test_without_a_schema_number_it_is_damaged(content: str) -> None:
    with pytest.raises(RecordError, match="no schema number"):
        read(content, schema=1)


def test_a_higher_schema_number_is_for_a_newer_version() -> None:
    assert read('{"schema": 1, "name": "x"}', schema=1) == Shape("x")
    with pytest.raises(NewerRecordError, match=r"has schema 2, but .* reads up to 1"):
        read('{"schema": 2}', schema=1)


def test_any_bytes_raise_that_error_alone() -> None:
    dice = random.Random(14)
    good = json.dumps({"schema": 1, "name": "x", "count": 7, "more": {"a": "b"}}).encode()
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(dice.randrange(1, 6)):
            start = dice.randrange(len(content) + 1)
            content[start : start + dice.randrange(8)] = dice.randbytes(dice.randrange(6))
        try:
            found = read(bytes(content), dice.choice([1, None]))
        except RecordError:
            continue
        assert isinstance(found, Shape)
