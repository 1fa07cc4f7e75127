"""What a file of prompts holds: every kind that people have, and those that cannot be told."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
from collections.abc import Callable
from typing import Any

import pytest

from raycluster.core.errors import UsageError
from raycluster.openai_client.files import PromptFile
from raycluster.openai_client.lines import EVERY, RefusedLineError, parse_line

A, B = {"prompt": "a"}, {"prompt": "b", "max_tokens": 3}
LINES = f"{json.dumps(A)}\n{json.dumps(B)}\n"


def opened(content: str | bytes, name: str = "", column: str = "") -> PromptFile:
    data = content.encode() if isinstance(content, str) else content
    return PromptFile(lambda: io.BytesIO(data), where="here", name=name, column=column)


def read(content: str | bytes, name: str = "", column: str = "") -> list[tuple[int, Any]]:
    return [(n, json.loads(item)) for n, item in opened(content, name, column).items()]


def asked(content: str | bytes, name: str = "", column: str = "") -> list[dict[str, Any]]:
    """Return the bodies that a file's items ask for."""
    file = opened(content, name, column)
    return [dict(parse_line(item, EVERY, file.column).body) for _, item in file.items()]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        "\n\r\n".join(map(json.dumps, (A, B))),
        json.dumps([A, B]),
        json.dumps([A, B], indent=2),
        f"[\n{json.dumps(A)},\n{json.dumps(B)}\n]",
        "\n  " + json.dumps([A, B], indent="\t") + "\r\n",
        json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2),
        json.dumps(A) + json.dumps(B),
        f"\x1e{json.dumps(A)}\n\x1e{json.dumps(B)}\n",
        f"\x1e{json.dumps(A, indent=1)}\n\x1e{json.dumps(B, indent=1)}\n",
    ],
)
@pytest.mark.parametrize("name", ["", "in.jsonl", "in.json", "in.txt"])
def test_json_in_every_layout_is_its_values(content: str, name: str) -> None:
    assert [value for _, value in read(content, name)] == [A, B]


def test_one_object_over_several_lines_is_one_item() -> None:
    assert read(json.dumps(A, indent=4)) == [(1, A)]


def utf16(text: str) -> bytes:
    return codecs.BOM_UTF16_BE + text.encode("utf-16-be")


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        utf16,
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: gzip.compress(text.encode("utf-16")),
        lambda text: bz2.compress(text.encode()),
        lambda text: lzma.compress(text.encode()),
    ],
)
@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ('{"prompt": "é"}\n{"prompt": "日本"}\n', "", [{"prompt": "é"}, {"prompt": "日本"}]),
        ('[\n  "é",\n  "日本"\n]', "", ["é", "日本"]),
        ("Say é\r\nand 日本\r\n", "", ["Say é", "and 日本"]),
        ("prompt,n\né,1\n日本,2\n", "a.csv", [{"prompt": "é", "n": 1}, {"prompt": "日本", "n": 2}]),
    ],
)
def test_encodings_and_packings(
    encode: Callable[[str], bytes], text: str, name: str, values: list[Any]
) -> None:
    assert [value for _, value in read(encode(text), name)] == values


@pytest.mark.parametrize(
    "text",
    [
        'Say hi\nquoted "a"\n[note] 1\n42\nnull\n',
        "Hello, you\nText\n",
        "Say\n",
        "Write a,b and c\n\tx\n",
        '"Yes", she said\n',
    ],
)
def test_plain_lines_are_prompts_as_they_are(text: str) -> None:
    assert [value for _, value in read(text)] == text.splitlines()


def test_a_torn_line_among_good_ones_is_left_to_its_reader() -> None:
    torn = b'{"prompt": "torn'
    for content in (torn + b"\n" + LINES.encode(), LINES.encode() + torn):
        items = [item for _, item in opened(content).items()]
        assert torn in items and len(items) == 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LINES + "plain\n", "line 3 is plain text, and the file begins as JSON"),
        ("plain\n" + LINES, "line 2 is JSON, and the file begins as plain text"),
        ("# made by hand\n" + LINES, "line 2 is JSON"),
        (LINES + "// end\n", "line 3 is plain text"),
        ('plain\n"a string"\n', "line 2 is JSON"),
        ('"a string"\nplain\n', "line 2 is plain text"),
        ('plain\n{"prompt": "torn\n', "line 2 is JSON"),
        ('{"prompt": "cut\nin two"}\n', "line 2 is plain text"),
        (LINES + '"torn string\n', "line 3 is plain text"),
        (json.dumps([A, B], indent=2)[:-1], "is JSON over several lines, and not valid: "),
        (json.dumps(A, indent=2)[:-1], "is JSON over several lines, and not valid: "),
        ('[{"prompt": "a"},\n {"prompt": "b"},\n]', "not valid: "),
        ('{"prompt": "a",\n "max_tokens": 3,\n}', "line 2 is plain text"),
        ("one\rtwo\rthree\n", "carriage return"),
        ("one\ntwo \0\n", "is no text"),
        (b"\0\1\2\3\4\5\6\7binary", "is no text"),
        (b"\x80\x04\x95pickle\0", "is no text"),
        (b"plain\nna\xefve\n", "line 2 is not UTF-8 at byte 3"),
        ("é\n".encode("utf-16")[:-1], "is not UTF-16"),
        ("prompt\nSay hi\n", "looks like a table row"),
        ("id,prompt\n1,Say hi\n", "looks like a table row"),
        ("text\tlabel\nSay hi\tgood\n", "looks like a table row"),
        ("instruction,input,output\nSay hi,,Hi\n", "looks like a table row"),
        ("1\tSay hi\n2\tSay ho\n", "looks like a table row"),
        ('"Say hi","good"\n"Say, ho","bad"\n', "looks like a table row"),
        ('1,"Say hi"\n', "looks like a table row"),
        ("Prompt;max_tokens\nSay hi;9\n", "looks like a table row"),
        (b"ARROW1\0\0", "is Arrow"),
        (b"PK\x03\x04\x14", "a spreadsheet"),
        (b"\x28\xb5\x2f\xfd\x24", "packed by zstd"),
        ("<?xml version='1.0'?><a/>", "is a document"),
        ("\n<!DOCTYPE html><html>", "is a document"),
    ],
)
def test_a_mixture_and_what_cannot_be_told_are_refused(content: str | bytes, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(opened(content).items())
    assert what in caught.value.what
    assert caught.value.where == "here" and caught.value.hint


@pytest.mark.parametrize("name", ["A.XLSX", "a.md", "a.yaml", "a.feather"])
def test_what_is_named_after_another_kind_is_not_read_by_lines(name: str) -> None:
    with pytest.raises(UsageError, match="which is not supported"):
        read("Say hi\n", name)


TABLE = 'id,Prompt,max_tokens,temperature,note\n007,"Say ""hi"",\nplease",16,,x\n\n1.0,42,,0.5,\n'


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("in.csv", lambda text: text),
        ("in.csv", lambda text: text.replace("\n", "\r\n")),
        ("IN.CSV.gz", lambda text: text.replace(",", ";")),
        ("in.tsv", lambda text: text.replace(",", "\t")),
    ],
)
def test_a_table_is_read_by_its_columns(name: str, change: Callable[[str], str]) -> None:
    content = change(TABLE)
    (_, first), (_, second) = read(content, name)
    comma = "," if "," in change(",") else change(",")
    end = "\r\n" if "\r\n" in content else "\n"
    assert first == {
        "id": "007",
        "prompt": f'Say "hi"{comma}{end}please',
        "max_tokens": 16,
        "note": "x",
    }
    assert second == {"id": "1.0", "prompt": "42", "temperature": 0.5}
    assert [number for number, _ in read(content, name)] == [2, 5]


def test_the_column_is_the_one_that_is_named() -> None:
    table = "instruction,prompt,custom_id\nSay hi,no,a\nSay ho,no,b\n"
    (first, second) = asked(table, "in.csv", "instruction")
    assert (first, second) == ({"prompt": "Say hi"}, {"prompt": "Say ho"})
    assert asked(table, column="instruction")[0] == {"prompt": "Say hi"}
    lines = '{"instruction": "Say hi", "output": "Hi", "max_tokens": 4}\n'
    assert asked(lines, "in.jsonl", "instruction") == [{"prompt": "Say hi", "max_tokens": 4}]
    turns = [{"role": "user", "content": "hi"}]
    chats = json.dumps([{"chosen": turns, "rejected": [], "prompt": "no", "score": 1}], indent=1)
    assert asked(chats, column="chosen") == [{"messages": turns}]
    assert asked(f'messages\n"{json.dumps(turns).replace(chr(34), chr(34) * 2)}"\n', "a.csv") == [
        {"messages": turns}
    ]
    with pytest.raises(RefusedLineError, match="no field 'absent'"):
        asked(lines, column="absent")


@pytest.mark.parametrize(
    ("content", "column", "what"),
    [
        ("a,b\n1,2\n", "", "which column has the prompts? There are 'a', 'b'"),
        ("prompt,text\n1,2\n", "", "which column"),
        ("Say hi\nSay ho\n", "", "which column"),
        ("a,b\n1,2\n", "c", "has no column 'c', but 'a', 'b'"),
        ("a,a\n1,2\n", "a", "more than one column 'a'"),
        ("prompt,n\nSay hi, please,1\n", "", "line 2 has 3 fields, and the header 2"),
        ("prompt,n\nSay hi,1\nSay ho\n", "", "line 3 has 1 fields"),
        ('prompt,n\n"Say hi,1\n', "", "is not CSV"),
        ('prompt,n\n"Say" hi,1\n', "", "is not CSV"),
        (b"prompt,n\nna\xefve,1\n", "", "is not UTF-8"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(content: str | bytes, column: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(content, "in.csv", column)
    assert what in caught.value.what and caught.value.hint


@pytest.mark.parametrize("content", ["", "\n\r\n", "\ufeff", "[]", "[\n]"])
@pytest.mark.parametrize("name", ["", "in.jsonl", "in.csv"])
def test_an_empty_file_has_no_item(content: str, name: str) -> None:
    if name != "in.csv" or not content.startswith("["):
        assert read(content, name) == []
