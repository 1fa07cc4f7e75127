"""The lines of an input file, plain or gzip, one at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from raycluster.errors import UsageError

MAX_LINE_BYTES = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number from 1, line end included; raises UsageError."""
    try:
        with _open(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise UsageError(
                        f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB",
                        where=str(path),
                        hint="a batch is one JSON value per line",
                    )
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"cannot be read: {reason}", where=str(path), hint="name a readable file"
        ) from error


def items(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that hold something, without their line ends; raises UsageError."""
    for number, line in raw_lines(path):
        item = strip(number, line)
        if item:
            yield number, item


def strip(number: int, line: bytes) -> bytes:
    """Return what a raw line holds; nothing for a blank one."""
    if number == 1:
        line = line.removeprefix(_BOM)
    line = line.strip(b"\r\n")
    return line if line.strip() else b""


def check_no_array(item: bytes, path: Path) -> None:
    """Raise UsageError when a file that begins with `item` is one JSON array."""
    begin = item.strip()
    if begin == b"[" or begin.startswith((b"[{", b'["')):
        raise UsageError(
            "is a JSON array; one request per line (JSONL) is needed",
            where=str(path),
            hint=f"jq -c '.[]' {path} > lines.jsonl",
        )


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    if packed:
        return cast(BinaryIO, gzip.open(path, "rb"))  # reads as a BinaryIO does
    return path.open("rb")
