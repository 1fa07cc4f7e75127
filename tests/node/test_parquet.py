"""Parquet files as people have them, written and read by the pyarrow that Ray brings to nodes."""

from __future__ import annotations

import datetime
import importlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raycluster.core.errors import UsageError
from raycluster.openai_client.files import PromptFile
from raycluster.openai_client.lines import EVERY, parse_line
from tests.local.cluster import made_by

pytestmark = pytest.mark.local

CHAT = [{"role": "user", "content": "Say hi", "name": None}]
TURNS = [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "Hi"}]
NOW = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)


@pytest.fixture(scope="module", autouse=True)
def arrow() -> Iterator[None]:
    """Find what is not installed here in the environment of nodes."""
    [packages] = Path(made_by("node-env")).glob("lib/python*/site-packages")
    sys.path.append(str(packages))
    yield
    sys.path.remove(str(packages))


def written(columns: Mapping[str, Sequence[object]], **how: Any) -> bytes:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(arrow.table(dict(columns)), file, **how)
    return file.getvalue()


def asked(content: bytes, column: str = "", name: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return the ids and bodies of what a file's rows ask for."""
    file = PromptFile(lambda: io.BytesIO(content), where="here", name=name, column=column)
    found = [parse_line(item, EVERY, file.column) for _, item in file.items()]
    return [(each.id, dict(each.body)) for each in found]


@pytest.mark.parametrize(
    ("columns", "column", "bodies"),
    [
        (
            {"id": [7, 8], "Prompt": ["a", "b"], "max_tokens": [16.0, None], "at": [NOW, None]},
            "",
            [("7", {"prompt": "a", "max_tokens": 16.0}), ("8", {"prompt": "b"})],
        ),
        ({"custom_id": ["x"], "prompt": [b"Say hi"]}, "", [("x", {"prompt": "Say hi"})]),
        ({"instruction": ["a"], "output": ["b"]}, "instruction", [("", {"prompt": "a"})]),
        ({"a.b": ["x"], "prompt": ["y"]}, "a.b", [("", {"prompt": "x"})]),
        ({"prompt": [[1, 2], [3]]}, "", [("", {"prompt": [1, 2]}), ("", {"prompt": [3]})]),
        (
            {"messages": [CHAT], "prompt": ["Say hi"], "prompt_id": ["x"]},
            "",
            [("", {"messages": [{"role": "user", "content": "Say hi"}]})],
        ),
        (
            {"chat": [TURNS], "seed": [1]},
            "chat",
            [("", {"messages": [{"role": "user", "content": "Say hi"}]})],
        ),
    ],
)
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_rows_are_prompts(
    columns: dict[str, Any], column: str, bodies: list[tuple[str, Any]], compression: str
) -> None:
    assert asked(written(columns, compression=compression), column) == bodies


def test_many_rows_are_read_by_parts() -> None:
    many = written({"text": [f"n{n}" for n in range(5000)]}, row_group_size=700)
    assert [body["prompt"] for _, body in asked(many)] == [f"n{n}" for n in range(5000)]


@pytest.mark.parametrize(
    ("content", "column", "what"),
    [
        (b"PAR1\x15\x04", "", "is no readable Parquet"),
        (b"PAR1" + b"x" * 100 + b"PAR1", "", "is no readable Parquet"),
        ({"a": ["x"], "b": ["y"]}, "", "which column has the prompts"),
        ({"a": ["x"], "b": ["y"]}, "c", "no column 'c'"),
        ({"text": ["x"], "question": ["y"]}, "", "which column has the prompts"),
        ({"id": [1], "Id": [2], "prompt": ["x"]}, "", "several columns 'id'"),
    ],
)
def test_what_cannot_be_told_is_refused(content: Any, column: str, what: str) -> None:
    data = content if isinstance(content, bytes) else written(content)
    with pytest.raises(UsageError, match=what) as caught:
        asked(data, column, "in.parquet")
    assert caught.value.where == "here"
    assert caught.value.hint
