"""The files of a run: requests.jsonl grows as requests end, the others are made in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TextIO

from raycluster.bench.export import write_csv
from raycluster.bench.page import page
from raycluster.bench.record import RequestRecord
from raycluster.bench.summary import BenchSummary
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.core.interfaces import Tell

REQUESTS = "requests.jsonl"
MOST_LEVELS = 10_000
UNREAD = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
"""What comes of reading a line that is damaged."""


class ResultsFolder(AbstractContextManager["ResultsFolder"]):
    """A folder of results, or nothing at all when `folder` is None.

    Raises UsageError when the folder cannot be made or, without `append`, holds results already.
    """

    def __init__(self, folder: Path | None, *, append: bool = False) -> None:
        self._folder = folder
        self._mode: Literal["a", "x"] = "a" if append else "x"
        self._requests: TextIO | None = None

    def __enter__(self) -> ResultsFolder:
        if self._folder is None:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._requests = (self._folder / REQUESTS).open(self._mode, encoding="utf-8")
        except FileExistsError as error:
            raise UsageError(
                "results already exist there", where=str(self._folder), hint="choose a new folder"
            ) from error
        except OSError as error:
            raise UsageError(
                f"cannot write: {error.strerror}",
                where=str(self._folder),
                hint="choose another folder",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._requests is None or self._folder is None:
            return
        empty = not self._requests.tell()
        self._requests.close()
        if empty:  # nothing was measured: the folder may be named again
            (self._folder / REQUESTS).unlink(missing_ok=True)

    def keep(self, level: int, record: RequestRecord) -> None:
        """Append one record; raises RayclusterError when the disk refuses."""
        if self._requests is None:
            return
        line = json.dumps({"level": level, **record.to_json()}, separators=(",", ":"))
        try:
            self._requests.write(line + "\n")
            self._requests.flush()
        except OSError as error:
            raise self._refused(error) from error

    def finish(self, summary: BenchSummary, tell: Tell | None = None) -> None:
        """Write summary.json, requests.csv and report.html, each whole or not at all.

        Raises RayclusterError when the disk refuses. A page that cannot be made for another reason
        is told of, and raises without `tell`: what was measured is written before it.
        """
        folder = self._folder
        if folder is None:
            return
        figures = summary.to_json()
        with self._draft("summary.json") as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        with (
            self._draft("requests.csv") as draft,
            draft.open("w", encoding="utf-8", errors="replace", newline="") as table,
        ):
            write_csv(read_levels(folder), table)
        try:
            made = page(figures, read_levels(folder))
        except Exception as error:  # no mistake in a page may cost the report of a long run
            if tell is None:
                raise
            tell(f"report.html was not written: {type(error).__name__}: {error}")
            return
        with self._draft("report.html") as draft:
            draft.write_bytes(made)

    @contextmanager
    def _draft(self, name: str) -> Iterator[Path]:
        """Yield where to write a file that takes its name when all of it is there."""
        draft = (self._folder or Path()) / f"{name}.part"
        try:
            yield draft
            draft.replace(draft.with_suffix(""))
        except OSError as error:
            raise self._refused(error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> RayclusterError:
        what = f"cannot write the results: {error.strerror}"
        return RayclusterError(what, where=str(self._folder), hint="free some space")


def read_levels(folder: Path) -> Iterator[list[RequestRecord]]:
    """Yield the records of one level after the other, holding no more than one.

    A level that none was kept of is empty. A last line that was cut short, as by a crash, is left
    out. Raises UsageError when the file cannot be read, or another line is not a record.
    """
    number = 0
    for level, lines in groupby(_lines(folder / REQUESTS), key=itemgetter(0)):
        yield from ([] for _ in range(number, level))
        yield [record for _, record in lines]
        number = level + 1


def level_of(values: Mapping[str, Any]) -> int:
    """Return the number of the level that a record is of. Raises one of UNREAD."""
    level = int(values["level"])
    if not 0 <= level <= MOST_LEVELS:
        raise ValueError("no load level")
    return level


def _lines(path: Path) -> Iterator[tuple[int, RequestRecord]]:
    hint = "name a folder written by `bench -o`"
    level = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    values = json.loads(line)
                    before, level = level, level_of(values)
                    record = RequestRecord.from_json(values)
                except UNREAD as error:
                    if not file.peek(1):
                        return
                    where = f"{path}, line {number}"
                    raise UsageError("not a record", where=where, hint=hint) from error
                if level < before:
                    where = f"{path}, line {number}"
                    raise UsageError("a finished level", where=where, hint=hint)
                yield level, record
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise UsageError(what, where=str(path), hint=hint) from error
