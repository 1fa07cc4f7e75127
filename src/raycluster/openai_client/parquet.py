"""Rows of Parquet files, by pyarrow, which is there where somebody has installed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from raycluster.openai_client.lines import HOLDERS

BEGIN = b"PAR1"
ROWS = 1024
"""Rows that are held at a time."""


class NoParquetError(Exception):
    """The file cannot be read; the message says why."""


def rows_of(
    file: BinaryIO, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Yield each row without the cells that are empty.

    `choose` gets the names of all columns, and returns what each is called, or "" where it is not
    to be read. Raises ImportError without pyarrow, and NoParquetError.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        parquet = ParquetFile(file)
        names = choose(parquet.schema_arrow.names)
        wanted = [i for i, name in enumerate(names) if name]
        if twice := {n for n in names if n and names.count(n) > 1}:
            raise NoParquetError(f"there are several columns {min(twice)!r}")
        columns = [parquet.schema_arrow.names[i] for i in wanted]
        for batch in parquet.iter_batches(ROWS, columns=columns):
            cells = (batch.column(column).to_pylist() for column in columns)
            for row in zip(*cells, strict=True):
                yield _one_holder(
                    {names[i]: _plain(v) for i, v in zip(wanted, row, strict=True) if not _empty(v)}
                )
    except (ArrowException, OSError, ValueError) as error:
        raise NoParquetError(str(error).partition("\n")[0]) from error


def _one_holder(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with what it asks for alone: data sets have it in several columns."""
    _, *others = [name for name in HOLDERS if name in row] or [""]
    return {name: value for name, value in row.items() if name not in others}


def _plain(value: object) -> object:
    """Return a value as JSON has it; each of a column's records has all fields, as nulls too."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if not _empty(each)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
