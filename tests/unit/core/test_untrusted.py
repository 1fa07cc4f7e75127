"""What hosts say is bounded, of the asked kind, and ends in no other error than ours."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core.errors import AnswerError
from raycluster.core.untrusted import (
    DEEPEST,
    Told,
    end_of,
    is_name,
    joined,
    lines,
    members,
    number_of,
    read_json,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            "{cut",
            "[" * 100_000,
            '{"a":' * 100_000,
            "nul",
            "{}{}",
            "\ufeff{}",
            "1" * 5000 + "x",
        ),
        *(b"\xff\xfe", b"\0", b"[1,]"),
        *("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), '{"a":[' * 400 + "1" + "]}" * 400),
    ],
)
def test_what_is_no_json_is_one_error(said: bytes | str) -> None:
    with pytest.raises(AnswerError, match="the answer of the dashboard cannot be parsed"):
        read_json(said, "the dashboard", "head")


def test_an_answer_that_is_too_long_is_not_read() -> None:
    with pytest.raises(AnswerError, match="sent more than 1 KiB"):
        read_json("[" + "1," * 1000 + "1]", "it", most=1024)


@pytest.mark.parametrize("said", ["9" * 310, "9" * 4301, "1e999", "-1e999", "NaN", "-Infinity"])
def test_numbers_that_nobody_can_mean_are_not_told(said: str) -> None:
    told = read_json(f'{{"a": {said}}}', "it")["a"]
    assert (told.whole(), told.number()) == (None, None)


def test_texts_can_be_written_again() -> None:
    told = read_json('{"a": "x\\ud800y"}', "it")["a"].text()
    assert told.encode() == "x\ufffdy".encode()
    raw = read_json('{"a\\udfff": ["\\ud800", {"b": "\\ud83d\\udca5"}]}', "it").value
    assert raw == {"a\ufffd": ["\ufffd", {"b": "💥"}]}


@given(ANYTHING, st.text() | st.integers(-3, 3))
def test_a_part_of_another_kind_reads_as_not_told(value: object, key: str | int) -> None:
    told = read_json(json.dumps(value), "it")[key]
    json.dumps([told.text(), told.whole(), told.number(), told.flag()], allow_nan=False).encode()
    assert len([*told]) >= 0
    for name, part in told.named():
        assert isinstance(name, str)
        assert isinstance(part, Told)


@pytest.mark.parametrize(("value", "number"), [(True, None), ("1", None), (2, 2), (2.5, 2.5)])
def test_a_number_is_a_number(value: object, number: float | None) -> None:
    assert Told(value).number() == number


@pytest.mark.parametrize("value", [None, {}, "a", 1])
def test_no_list_is_not_an_empty_list(value: object) -> None:
    with pytest.raises(AnswerError):
        Told(value, "Ray's dashboard", "head").listed()


@pytest.mark.parametrize("word", ["head", "worker", "gateway-1", "a.b_c"])
def test_a_role(word: str) -> None:
    assert is_name(word)


@pytest.mark.parametrize(
    "word", ["", "..", "../x", "a/b", "a..b", "-x", "\n", "a b", "A", "é", "x" * 70]
)
def test_no_role(word: str) -> None:
    assert not is_name(word)


@pytest.mark.parametrize(
    "said", ["nan", "inf", "-1", "1_0", "0x10", "١", "9" * 400, "", None, 7, "1e9999"]
)
def test_no_number(said: object) -> None:
    assert number_of(said) is None


def test_numbers_of_awk() -> None:
    assert [number_of(w) for w in ("12", "1.5", "2.5e+07", " 3\n")] == [12, 1.5, 2.5e7, 3]


def test_lines_come_whole_and_are_bounded() -> None:
    assert [*lines([b"a\nb", b"c\n\n", b"d"], "it")] == [b"a", b"bc", b"", b"d"]
    with pytest.raises(AnswerError, match="more than 1 KiB"):
        list(lines(iter(lambda: b"x" * 100, None), "it", most=1024))
    with pytest.raises(AnswerError, match="more than 1 KiB"):
        joined(iter(lambda: b"x" * 100, None), "it", most=1024)


def test_of_a_log_without_end_the_last_bytes_are_kept() -> None:
    endless = iter(lambda: b"x" * 100, None)
    assert end_of(endless, 10, read=1000) == b"x" * 10


def packed(name: str, content: bytes = b"", **fields: object) -> bytes:
    """Return an archive with one member."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def test_plain_files_of_an_archive() -> None:
    assert [*members(packed("ray/gcs_server.out", b"log"), "it")] == [
        ("ray/gcs_server.out", b"log")
    ]


@pytest.mark.parametrize(
    "archive",
    [
        packed("../evil", b"x"),
        packed("/tmp/evil", b"x"),
        packed("a/../../evil", b"x"),
        packed("a/./b", b"x"),
        packed("\x1b[2J", b"x"),
        packed("a\nb", b"x"),
        packed("a\\b", b"x"),
        packed("x" * 500, b"x"),
        packed("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        packed("link", type=tarfile.LNKTYPE, linkname="link"),
        packed("pipe", type=tarfile.FIFOTYPE),
        packed("device", type=tarfile.CHRTYPE),
        b"",
        bytes(1024),
    ],
)
def test_what_is_no_plain_file_inside_is_left_out(archive: bytes) -> None:
    try:
        assert [*members(archive, "it")] == []
    except AnswerError:
        assert not archive


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 31)}


@pytest.mark.parametrize(
    "archive",
    [
        lambda: gzip.compress(packed("big", bytes(300 << 20)), 1),
        lambda: lzma.compress(packed("big", bytes(50 << 20)), preset=0),
        lambda: packed("s", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=SPARSE),
        lambda: b"\xfd7zXZ\0" + b"\1" * 50,
        lambda: tarfile.TarInfo("a").tobuf()[:300],
        lambda: packed("a", b"x" * 600)[:700],
        lambda: b"".join(
            tarfile.TarInfo("h").create_pax_global_header({"a": "b"}) for _ in range(3000)
        ),
    ],
    ids=["gzip", "xz", "sparse", "no-xz", "cut", "shorter", "headers"],
)
def test_an_archive_does_not_grow(archive: Callable[[], bytes]) -> None:
    made = archive()
    tracemalloc.start()
    try:
        size = sum(len(content) for _, content in members(made, "the node", "gpu-1"))
    except AnswerError as error:
        assert error.where == "gpu-1"
        size = 0
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size <= len(made)
    assert peak < 10 << 20
