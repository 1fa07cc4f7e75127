"""The files of a run: requests.jsonl grows as requests end, summary.json comes last."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from raycluster.bench.record import Record
from raycluster.bench.summary import Summary
from raycluster.errors import RayclusterError, UsageError


class Results(AbstractContextManager["Results"]):
    """A folder of results, or nothing at all when `folder` is None.

    Raises UsageError when the folder cannot be made or holds results already.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._requests: TextIO | None = None

    def __enter__(self) -> Results:
        if self._folder is None:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._requests = (self._folder / "requests.jsonl").open("x", encoding="utf-8")
        except FileExistsError as error:
            raise UsageError(
                "results are there already", where=str(self._folder), hint="name a new folder"
            ) from error
        except OSError as error:
            raise UsageError(
                f"cannot write: {error.strerror}", where=str(self._folder), hint="name another"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._requests is None or self._folder is None:
            return
        empty = not self._requests.tell()
        self._requests.close()
        if empty:  # nothing was measured: the folder may be named again
            (self._folder / "requests.jsonl").unlink(missing_ok=True)

    def keep(self, level: int, record: Record) -> None:
        """Append one record; raises RayclusterError when the disk refuses."""
        if self._requests is None:
            return
        line = json.dumps({"level": level, **record.to_json()}, separators=(",", ":"))
        try:
            self._requests.write(line + "\n")
            self._requests.flush()
        except OSError as error:
            raise self._refused(error) from error

    def finish(self, summary: Summary) -> None:
        """Write summary.json, whole or not at all; raises RayclusterError."""
        if self._folder is None:
            return
        text = json.dumps(summary.to_json(), indent=2) + "\n"
        try:
            draft = self._folder / "summary.json.part"
            draft.write_text(text, encoding="utf-8")
            draft.replace(self._folder / "summary.json")
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RayclusterError:
        what = f"cannot write the results: {error.strerror}"
        return RayclusterError(what, where=str(self._folder), hint="free some space")
