"""The output file: one line per finished input line, and the only memory of what was done.

The id of a line is `batch-INPUT-OPTIONS-LINE`: the digests of the input and of the options that
make requests, and the number of the input line. So the file itself says what it belongs to and
what is done, and there is no second file that could disagree with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from raycluster.core.errors import AnswerError, LockedError, RayclusterError, UsageError
from raycluster.core.untrusted import read_json
from raycluster.serve.asking.result import Fingerprint, Result

_ID = re.compile(rb'\{"id": "batch-([0-9a-f]{12})-([0-9a-f]{8})-([0-9]{1,18})", ')
_OK_END = b'"error": null}\n'
_END = b"}\n"


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """A whole line of the output file."""

    line: int
    ok: bool
    offset: int
    size: int


class Ledger:
    """The output file, open and held by this process alone; a context manager.

    A torn last line is cut off. Raises UsageError for a file that is not of this fingerprint,
    LockedError when another process writes it.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, last: int) -> None:
        self.path = Path(os.path.realpath(path))
        self.ok = self.failed = 0
        self._stamp = fingerprint
        self._done = bytearray(last // 8 + 1)
        self._last = last
        self._size = 0
        self._fd = _open(self.path)
        try:
            self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.sync()
        finally:
            os.close(self._fd)

    def has(self, line: int) -> bool:
        """Return whether a line has its result."""
        return bool(self._done[line >> 3] >> (line & 7) & 1)

    def add(self, result: Result) -> None:
        """Append a result; it survives this process from here on. Raises RayclusterError."""
        self._append(result.encode(self._stamp))
        self._note(result.line, ok=result.error is None)

    def take(self, content: bytes) -> bool:
        """Append a result that another process has encoded; return False for one that is here.

        Raises RayclusterError.
        """
        found = _ID.match(content)
        if found is None or not 0 < int(found[3]) <= self._last or not _is_result(content):
            raise RayclusterError(
                f"received something that is not a result: {content[:80]!r}",
                where=str(self.path),
                hint="run the same command to continue",
            )
        self._check(1, found)
        line = int(found[3])
        if self.has(line):
            return False
        self._append(content)
        self._note(line, ok=content.endswith(_OK_END))
        return True

    def _append(self, content: bytes) -> None:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise _cannot_write(self.path, error) from error
        self._size += len(content)

    def sync(self) -> None:
        """Make what was added survive a power cut."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def drop_errors(self) -> int:
        """Take the results of failed lines out, so that they are due again; return how many."""
        dropped = self.failed
        if dropped:
            self._rewrite(self._copy_ok)
        return dropped

    def put_in_order(self) -> None:
        """Bring the results into the order of the input. Holds 8 bytes per line meanwhile."""
        places = array("Q", bytes(8 * (self._last + 1)))
        ordered, before = True, 0
        for entry in self._entries():
            ordered, before = ordered and entry.line > before, entry.line
            places[entry.line] = entry.offset
        if not ordered:
            self._rewrite(lambda copy: self._copy_ordered(copy, places))

    def _read(self) -> None:
        end = 0
        for entry in self._entries():
            if self.has(entry.line):
                raise self._foreign(f"has two results for line {entry.line}")
            self._note(entry.line, ok=entry.ok)
            end = entry.offset + entry.size
        self._size = end
        if end != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, end)

    def _entries(self) -> Iterator[LedgerLine]:
        """Yield the whole lines; a last one that was not written to its end is left out."""
        offset = 0
        with self.path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                found = _ID.match(content)
                if not content.endswith(_END) or found is None:
                    if file.peek(1) or not (found or number > 1 or _begun(content)):
                        raise self._foreign(f"line {number} is not a batch result")
                    return
                self._check(number, found)
                line = int(found[3])
                yield LedgerLine(line, content.endswith(_OK_END), offset, len(content))
                offset += len(content)

    def _check(self, number: int, found: re.Match[bytes]) -> None:
        if found[1].decode() != self._stamp.input:
            raise self._foreign("holds results of another input, or the input has changed since")
        if found[2].decode() != self._stamp.options:
            raise self._foreign("was written with a different --model, --endpoint or --max-tokens")
        if int(found[3]) > self._last:
            raise self._foreign(f"line {number} is for an input line beyond --limit")

    def _foreign(self, what: str) -> UsageError:
        return UsageError(what, where=str(self.path), hint="choose another file with --output")

    def _note(self, line: int, *, ok: bool) -> None:
        self._done[line >> 3] |= 1 << (line & 7)
        self.ok += ok
        self.failed += not ok

    def _rewrite(self, copy: Callable[[BinaryIO], None]) -> None:
        """Replace the file by what `copy` writes: whole, or not at all."""
        beside = self.path.with_name(self.path.name + ".new")
        try:
            new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            _hold(new, self.path)
            os.fchmod(new, stat.S_IMODE(os.fstat(self._fd).st_mode))
            with os.fdopen(new, "ab", closefd=False) as file:
                copy(file)
            os.fsync(new)
            beside.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise _cannot_write(self.path, error) from error
        os.close(self._fd)
        self._fd = new
        self._done = bytearray(len(self._done))
        self.ok = self.failed = 0
        self._read()

    def _copy_ok(self, copy: BinaryIO) -> None:
        with self.path.open("rb") as file:
            for content in file:
                if content.endswith(_OK_END):
                    copy.write(content)

    def _copy_ordered(self, copy: BinaryIO, places: array[int]) -> None:
        with self.path.open("rb") as file:
            for line, offset in enumerate(places):
                if self.has(line):
                    file.seek(offset)
                    copy.write(file.readline())


def _is_result(content: bytes) -> bool:
    """Return whether a line that came from elsewhere is JSON of an object, as each line here is."""
    if not content.endswith(_END):
        return False
    try:
        read_json(content.decode(), "", most=len(content)).table()
        if b"NaN" in content or b"Infinity" in content:
            json.loads(content, parse_constant=_refuse, parse_int=str)
    except (AnswerError, ValueError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _begun(content: bytes) -> bool:
    """Return whether a torn line could have become one of ours."""
    begin = b'{"id": "batch-'
    return content.startswith(begin) or begin.startswith(content)


def _open(path: Path) -> int:
    """Return a descriptor that appends, with the file held by this process."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError("is not a regular file", where=str(path), hint="name a file")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot be opened: {error.strerror}", where=str(path), hint="name a writable file"
        ) from error
    try:
        _hold(descriptor, path)
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise _locked(path)  # its holder has replaced it in this moment
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _locked(path) from error


def _locked(path: Path) -> LockedError:
    return LockedError(
        "another run is writing to this file", where=str(path), hint="wait for it, or stop it"
    )


def _cannot_write(path: Path, error: OSError) -> RayclusterError:
    return RayclusterError(
        f"cannot write: {error.strerror}",
        where=str(path),
        hint="the results in it are complete: free some space, then run the same command again",
    )


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
