"""Files of prompts: what a file holds is decided once, and then it is items of JSON."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, NoReturn, cast

from raycluster.core.errors import UsageError
from raycluster.openai_client import parquet
from raycluster.openai_client.lines import HOLDERS, PARAMETERS, PROMPTS

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
"""Of a JSON document over several lines, which is read as a whole."""

AS_LINES = 'one JSON object per line, such as {"custom_id": "1", "prompt": "..."}'
_HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"
_RECORD = b"\x1e"
"""Begins a line where JSON is written as a sequence (RFC 7464)."""
_PACKED: tuple[tuple[bytes, Callable[[Any], object]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ", lzma.LZMAFile),
)
_PANDAS = (
    "python -c 'import pandas as p; "
    'p.read_{}("IN").to_json("OUT.jsonl", orient="records", lines=True)\''
)
_OTHERS = (
    ("Arrow", _PANDAS.format("feather"), (b"ARROW1",), (".arrow", ".feather")),
    (
        "a zip file or a spreadsheet",
        "save its content as CSV or JSON lines",
        (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"),
        (".zip", ".xlsx", ".xls", ".ods"),
    ),
    ("packed by zstd", "zstd -d", (b"\x28\xb5\x2f\xfd",), (".zst",)),
    (
        "a document",
        f"give {AS_LINES}",
        (b"%PDF", b"<?xml", b"<!doctype", b"<html", b"%yaml", b"{\\rtf"),
        (".pdf", ".xml", ".html", ".htm", ".yaml", ".yml", ".toml", ".md", ".rst", ".tex", ".docx"),
    ),
)
"""What is not read by lines: the cure, and what such a file begins with or how its name ends."""

_TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'[,;|]"([^"]|"")*"$|^"([^"]|"")*"[,;|]\S')
_FIELDS = frozenset({*HOLDERS, *PARAMETERS, "custom_id", "id", "url", "method", "timestamp"})
_TEXTS = frozenset({*PROMPTS, "custom_id", "id", "url", "method", "model", "user", "suffix"})
"""Cells of these columns are texts, whatever they look like."""

Kind = Literal["lines", "text", "document", "table", "parquet"]


class PromptFile:
    """A file of prompts, as items of JSON with their number.

    `open_file` gives its bytes from the beginning, each time; `name` is what its ending is taken
    from. A number is that of the item's first line, or in a JSON document its place. `column` is
    the field that holds the prompt; without it, that of a table is found here.

    Raises UsageError, here and while it is read, where it is not of one kind that is certain.
    """

    def __init__(
        self, open_file: Callable[[], BinaryIO], *, where: str, name: str = "", column: str = ""
    ) -> None:
        self.where = where
        self.column = column
        self._open = open_file
        parts = PurePath(name.lower()).suffixes
        self._suffix = next((s for s in reversed(parts) if s not in {".gz", ".bz2", ".xz"}), "")
        self._delimiter = ""
        self._encoding = "utf-8"
        self.kind: Kind = self._decide()

    @classmethod
    def at(cls, path: Path, column: str = "") -> PromptFile:
        """Return what the file at a path holds, which is read again whenever it is needed."""
        return cls(
            lambda: path.open("rb", buffering=0), where=str(path), name=path.name, column=column
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield every byte, unpacked."""
        with self._unpacked() as file:
            while chunk := file.read(1 << 20):
                yield chunk

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield each item as one line of JSON; one that is broken as it is."""
        match self.kind:
            case "document":
                values = enumerate(self._document() or (), start=1)
                yield from ((number, json.dumps(value).encode()) for number, value in values)
            case "parquet":
                rows = enumerate(self._parquet_rows(), start=1)
                yield from ((number, json.dumps(row).encode()) for number, row in rows)
            case "table":
                yield from ((number, json.dumps(row).encode()) for number, row in self._rows())
            case "text":
                yield from self._texts()
            case "lines":
                yield from self._json_lines()

    # ---- what it is ----

    def _decide(self) -> Kind:
        head = self._head()
        for what, cure, begins, suffixes in _OTHERS:
            if self._suffix in suffixes or head.startswith(begins) or _lower(head, begins):
                self._refuse(f"is {what}, which is not supported", cure)
        if head.startswith(parquet.BEGIN) or self._suffix == ".parquet":
            next(self._parquet_rows(), None)
            return "parquet"
        self._encoding = self._encoding_of(head)
        number, first = next(self._lines(), (1, b""))
        if self._suffix in _TABLES or (self.column and not first.lstrip().startswith((b"{", b"["))):
            self._delimiter = self._delimiter_of(first)
            next(self._rows(), None)
            return "table"
        value, begin = _read(first), first.lstrip()[:1]
        alone = value is not None and self._is_last(number)
        torn = begin in {b"{", b"["} and value is None
        if (torn or (alone and isinstance(value, list))) and self._document(first) is not None:
            return "document"
        if isinstance(value, dict | list | str) or begin == b"{":
            return "lines"
        if not first:
            return "text"
        if _like_a_table([line for _, line in islice(self._lines(), 2)]):
            self._refuse(
                f"line {number} looks like a table row",
                f"--column NAME if its first line names the columns; otherwise {AS_LINES}",
            )
        return "text"

    def _head(self) -> bytes:
        with self._unpacked() as file:
            return file.read(_HEAD_BYTES)

    def _encoding_of(self, head: bytes) -> str:
        """Return the encoding that marks or zeros at the beginning tell of."""
        encoding = json.detect_encoding(head)
        marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
        whole = head[: len(head) - len(head) % 4] if len(head) == _HEAD_BYTES else head
        text = whole.decode(
            encoding, errors="ignore" if encoding.startswith("utf-8") else "replace"
        )
        if "\0" in text or (not encoding.startswith("utf-8") and not marked and _odd(text)):
            self._refuse("is no text", f"give {AS_LINES}")
        return "utf-8" if encoding.startswith("utf-8") else encoding

    def _is_last(self, number: int) -> bool:
        return not any(True for other, _ in self._lines() if other > number)

    def _delimiter_of(self, first: bytes) -> str:
        if self._suffix in _TABLES and _TABLES[self._suffix] == "\t":
            return "\t"
        text = first.decode(errors="replace")
        split = {s: [name.strip() for name in _split(text, s)] for s in _DELIMITERS}
        return max(split, key=lambda sign: (self.column in split[sign], len(split[sign])))

    # ---- its items ----

    def _json_lines(self) -> Iterator[tuple[int, bytes]]:
        for number, line in self._lines():
            if not line.lstrip().startswith(b"{") and _read(line) is None:
                self._mixed(number, "plain text", "JSON")
            yield number, line

    def _texts(self) -> Iterator[tuple[int, bytes]]:
        for number, line in self._lines():
            begin = line.lstrip()[:1]
            if begin == b"{" or (begin in {b"[", b'"'} and _read(line) is not None):
                self._mixed(number, "JSON", "plain text")
            if b"\r" in line or b"\0" in line:
                self._refuse(
                    f"line {number} holds a carriage return or a zero byte",
                    f"tr '\\r' '\\n' ends lines as here; or give {AS_LINES}",
                )
            yield number, json.dumps(self._decoded(number, line)).encode()

    def _decoded(self, number: int, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._refuse(
                f"line {number} is not UTF-8 at byte {error.start + 1}",
                "iconv -f latin1 -t utf-8, if that is what it is in",
            )

    def _document(self, first: bytes = b"") -> list[object] | None:
        """Return the values of JSON that goes over lines as it likes; None where it is not that."""
        opens = first.strip() in {b"[", b"{"} or first.lstrip().startswith(b"[{")
        with self._unpacked() as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            if not opens:
                return None
            self._refuse(
                f"is JSON over several lines, and more than {MAX_DOCUMENT_BYTES >> 20} MiB",
                "jq -c '.[]' IN > OUT.jsonl",
            )
        decoder, values, place = json.JSONDecoder(), list[object](), 0
        try:
            text = content.removeprefix(_BOM).decode(self._encoding)
            while (place := _past_space(text, place)) < len(text):
                value, place = decoder.raw_decode(text, place)
                values.append(value)
        except (ValueError, RecursionError) as error:
            if opens:
                self._refuse(
                    f"is JSON over several lines, and not valid: {error}", f"jq . {self.where}"
                )
            return None
        whole = len(values) == 1 and isinstance(values[0], list)
        return cast(list[object], values[0]) if whole else values

    def _rows(self) -> Iterator[tuple[int, dict[str, object]]]:
        csv.field_size_limit(MAX_LINE_BYTES)
        encoding = "utf-8-sig" if self._encoding == "utf-8" else self._encoding
        with self._unpacked() as file, io.TextIOWrapper(file, encoding, newline="") as text:
            reader = csv.reader(text, delimiter=self._delimiter, strict=True)
            names: list[str] = []
            number = 1
            try:
                for fields in reader:
                    begun, number = number, reader.line_num + 1
                    if not any(fields):
                        continue
                    if not names:
                        names = self._names(fields)
                        continue
                    if len(fields) != len(names):
                        what = f"line {begun} has {len(fields)} fields, and the header {len(names)}"
                        self._refuse(what, 'put fields that contain a delimiter in "quotes"')
                    yield begun, _row(dict(zip(names, fields, strict=True)), self.column)
            except csv.Error as error:
                self._refuse(f"line {reader.line_num} is not CSV: {error}", f"give {AS_LINES}")

    def _parquet_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self._unpacked() as file:
                yield from parquet.rows_of(file, self._columns)
        except ImportError:
            how = f"pip install 'raycluster[parquet]'; or {_PANDAS.format('parquet')}"
            self._refuse("is Parquet, for which pyarrow is not installed", how)
        except parquet.NoParquetError as error:
            self._refuse(f"is no readable Parquet: {error}", f"give {AS_LINES}", error)

    def _columns(self, header: Sequence[str]) -> list[str]:
        names = self._names(list(header))
        return [name if name == self.column or name in _FIELDS else "" for name in names]

    def _names(self, header: list[str]) -> list[str]:
        """Return the columns' names, and choose the one that holds the prompts."""
        plain = [name.strip() for name in header]
        names = [n if n == self.column or n.lower() not in _FIELDS else n.lower() for n in plain]
        if not self.column and not set(HOLDERS) - set(PROMPTS) & set(names):
            found = [name for name in names if name in PROMPTS]
            if len(found) != 1:
                shown = ", ".join(map(repr, names[:20]))
                self._refuse(
                    f"which column has the prompts? There {'are' if names[1:] else 'is'} {shown}",
                    "--column NAME; the first line must name the columns",
                )
            self.column = found[0]
        if self.column and names.count(self.column) != 1:
            shown = ", ".join(map(repr, names[:20]))
            how = "no column" if self.column not in names else "more than one column"
            self._refuse(f"has {how} {self.column!r}, but {shown}", "--column NAME")
        return names

    # ---- its bytes ----

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that hold something, in UTF-8, without their ends."""
        for number, line in enumerate(self._raw_lines(), start=1):
            kept = (line.removeprefix(_BOM) if number == 1 else line).strip(b"\r\n")
            kept = kept.removeprefix(_RECORD)
            if kept.strip():
                yield number, kept

    def _raw_lines(self) -> Iterator[bytes]:
        number = 0
        with self._unpacked() as file:
            text = None
            if self._encoding != "utf-8":
                text = io.TextIOWrapper(file, self._encoding, newline="\n")
            while True:
                number += 1
                most = MAX_LINE_BYTES + 1
                line = file.readline(most) if text is None else text.readline(most).encode()
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    what = f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB"
                    self._refuse(what, AS_LINES)
                yield line

    @contextmanager
    def _unpacked(self) -> Iterator[BinaryIO]:
        try:
            with self._open() as raw:
                file = io.BufferedReader(cast(Any, raw))
                begin = file.peek(8)
                unpack = next((use for mark, use in _PACKED if begin.startswith(mark)), None)
                yield cast(BinaryIO, unpack(file) if unpack else file)
        except UnicodeError as error:
            self._refuse(f"is not {self._encoding.upper()}: {error}", "iconv -t utf-8")
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._refuse(f"cannot be read: {reason}", "give a readable file", error)

    def _mixed(self, number: int, what: str, other: str) -> NoReturn:
        self._refuse(
            f"line {number} is {what}, and the file begins as {other}",
            f"one kind in a file: give {AS_LINES}",
        )

    def _refuse(self, what: str, hint: str, cause: BaseException | None = None) -> NoReturn:
        raise UsageError(what, where=self.where, hint=hint) from cause


def _read(line: bytes) -> object:
    """Return the JSON value on a line; None for what is none."""
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value


def _lower(head: bytes, begins: tuple[bytes, ...]) -> bool:
    return head[:16].lstrip().lower().startswith(begins)


def _odd(text: str) -> bool:
    return any(sign < " " and sign not in "\t\r\n" for sign in text)


def _past_space(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _like_a_table(lines: list[bytes]) -> bool:
    """Return whether a file that begins so names columns, or has some without naming them."""
    texts = [line.decode(errors="replace") for line in lines]
    for sign in _DELIMITERS:
        names = _split(texts[0], sign)
        named = all(name.isidentifier() for name in names)
        if named and (len(names) > 1 or texts[0].lower() in PROMPTS):
            return True
    tabs = {text.count("\t") for text in texts}
    return (len(tabs) == 1 and tabs != {0}) or bool(_QUOTED.search(texts[0]))


def _row(cells: Mapping[str, str], column: str) -> dict[str, object]:
    """Return a row as a line of JSON would say it; an empty cell says nothing."""
    row: dict[str, object] = {}
    for name, text in cells.items():
        known = name in _FIELDS and name not in _TEXTS
        value = _read(text.encode("utf-8", "surrogatepass")) if known else None
        if text or name == column:
            row[name] = text if value is None else value
    return row
