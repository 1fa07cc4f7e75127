"""What hosts say -> values: bounded, of the asked kind, and no other error than AnswerError; pure.

Whoever holds a host chooses what it answers. JSON is read here alone, and a part of it that is of
another kind than asked for reads as not told; where that would be taken for an answer (no nodes, no
applications), `listed` and `table` refuse it.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import AnswerError, CommandError
from raycluster.core.interfaces import Completed, Versions

ANSWER_BYTES = 32 << 20
"""Bytes of one answer, or of what one command writes, at most."""
LINE_BYTES = 8 << 20
"""Bytes of one line of a program, at most."""
LOG_BYTES = 64 << 20
"""Bytes of the last lines of a log, at most."""
DEEPEST = 64
"""Levels of JSON, at most: what is deeper could not be written again."""
TEXT = 64 << 10
"""Characters of one text, at most: of a longer one the beginning counts."""
MANY = 100_000
"""Parts of a list or table, at most."""
MEMBERS = 10_000
"""Files of an archive, at most."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_SIGNS = re.compile(r"[^\[\]{}]+")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # may be one of a pair, or alone
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_BROKEN_TAR = (
    *(tarfile.TarError, ValueError, LookupError, OverflowError, EOFError, OSError),
    RecursionError,  # of headers that announce headers
)
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+:,-]{0,200}")


@dataclass(frozen=True, slots=True)
class Told:
    """A part of what a host said; `source` and `where` are who said it, for errors."""

    value: Any
    source: str = ""
    where: str = ""

    def __getitem__(self, key: str | int) -> Told:
        """Return a part of a table or list; nothing where there is none."""
        value = self.value
        if isinstance(value, dict):
            return self._part(value.get(key))
        if isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            return self._part(value[key])
        return self._part(None)

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def __iter__(self) -> Iterator[Told]:
        """Yield the parts of a list; none of anything else."""
        return map(self._part, self.value[:MANY] if isinstance(self.value, list) else ())

    def named(self) -> Iterator[tuple[str, Told]]:
        """Yield the parts of a table by their names; none of anything else."""
        parts = list(self.value.items())[:MANY] if isinstance(self.value, dict) else ()
        return ((_text(name, TEXT), self._part(part)) for name, part in parts)

    def text(self, most: int = TEXT) -> str:
        """Return a text, or the beginning of it; "" for anything else."""
        return _text(self.value, most) if isinstance(self.value, str) else ""

    def whole(self) -> int | None:
        """Return a whole number that is not negative."""
        number = self.value
        return number if type(number) is int and 0 <= number < 1 << 63 else None

    def number(self) -> float | None:
        """Return a finite number."""
        number = self.value
        if type(number) not in (int, float) or not abs(number) < 1e18:  # NaN neither
            return None
        return number if type(number) is int else float(number)

    def flag(self) -> bool:
        """Tell whether it is true."""
        return self.value is True

    def table(self) -> dict[str, Any]:
        """Return a table as it is. Raises AnswerError for anything else."""
        if not isinstance(self.value, dict):
            raise self.refused()
        return self.value

    def listed(self) -> Told:
        """Return itself if it is a list. Raises AnswerError for anything else."""
        if not isinstance(self.value, list):
            raise self.refused()
        return self

    def refused(self) -> AnswerError:
        """Return the error for what is not as it has to be."""
        return not_understood(self.source, self.where)

    def _part(self, value: Any) -> Told:  # noqa: ANN401
        return Told(value, self.source, self.where)


def not_understood(source: str, where: str, said: str | bytes = "") -> AnswerError:
    """Return the error for what a source says, with the beginning of it where that helps."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    words = f": {clean(text, 100)}" if text.strip() else ""
    return AnswerError(
        f"the answer of {source or 'the host'} cannot be parsed{words}",
        where=where,
        hint="check that host: another program may respond there, or a broken one",
    )


def too_much(source: str, where: str, most: int) -> AnswerError:
    """Return the error for a source that says more than is read of it."""
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
    return AnswerError(
        f"{source} sent more than {size}, more than is plausible",
        where=where,
        hint="check that host: another program may respond there, or a broken one",
    )


def read_json(said: bytes | str, source: str, where: str = "", *, most: int = ANSWER_BYTES) -> Told:
    """Return what a text of JSON holds; numbers that no machine can mean are not told.

    Raises AnswerError.
    """
    if len(said) > most:
        raise too_much(source, where, most)
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    try:
        if not _is_shallow(text):
            raise ValueError("too deep")
        value = json.loads(
            text, parse_constant=lambda _: None, parse_int=_whole, parse_float=_float
        )
    except (ValueError, RecursionError) as error:
        raise not_understood(source, where, text) from error
    return Told(_encodable(value) if _HALF.search(text) else value, source, where)


def _encodable(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return a value in which every text can be encoded again."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_encodable(name): _encodable(part) for name, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, list) else value


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= 19 else None


def _float(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _is_shallow(text: str) -> bool:
    """Tell whether lists and tables stand within each other at most DEEPEST times, and end.

    The parser of JSON would find that out by recursion, and at the limit of that whatever the
    collector of garbage runs fails too.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return True
    left = _NO_SIGNS.sub("", _STRINGS.sub("", text))
    for _ in range(DEEPEST):
        left = left.replace("[]", "").replace("{}", "")
        if not left:
            return True
    return False


def _text(text: str, most: int) -> str:
    """Return a text that can be encoded again."""
    return _SURROGATE.sub("\ufffd", text[:most])


def versions(told: Told) -> Versions:
    """Return what a node's environment holds, as far as it is told."""
    return Versions(**{each.name: told[each.name].text(500) for each in fields(Versions)})


def printable(text: str, most: int = TEXT) -> str:
    """Return a text, or the beginning of it, that can be encoded again."""
    return _text(text, most)


def is_name(said: str) -> bool:
    """Tell whether a host's word can be a role's name, which becomes part of paths."""
    return bool(_NAME.fullmatch(said)) and ".." not in said


def is_digest(said: str) -> bool:
    """Tell whether a host's word is the digest of an image."""
    return bool(re.fullmatch(r"sha256:[0-9a-f]{64}", said))


def joined(
    chunks: Iterable[bytes], source: str, where: str = "", *, most: int = ANSWER_BYTES
) -> bytes:
    """Return all of them together. Raises AnswerError."""
    whole = bytearray()
    for chunk in chunks:
        whole += chunk
        if len(whole) > most:
            raise too_much(source, where, most)
    return bytes(whole)


def end_of(chunks: Iterator[bytes], most: int, *, read: int = LOG_BYTES) -> bytes:
    """Return the last bytes of what is read; who says more than `read` bytes is not heard out."""
    kept, size = bytearray(), 0
    try:
        for chunk in chunks:
            kept += chunk
            size += len(chunk)
            del kept[:-most]
            if size > read:
                break
    finally:
        if isinstance(chunks, Generator):
            chunks.close()
    return bytes(kept)


def lines(
    chunks: Iterable[bytes], source: str, where: str = "", *, most: int = LINE_BYTES
) -> Iterator[bytes]:
    """Yield whole lines, without their ends, and what is left. Raises AnswerError."""
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            yield from whole
        if len(rest) > most:
            raise too_much(source, where, most)
    if rest:
        yield bytes(rest)


def members(packed: bytes, source: str, where: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the plain files of an archive (tar, not compressed) with names that lead nowhere else.

    Together they hold no more bytes than the archive. Raises AnswerError.
    """
    if len(packed) > ANSWER_BYTES:
        raise too_much(source, where, ANSWER_BYTES)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            left, count = len(packed), 0
            for member in tar:
                count += 1
                if count > MEMBERS or member.size > left:
                    raise too_much(source, where, len(packed))
                if not member.isreg() or member.issparse() or not _is_inside(member.name):
                    continue
                file = tar.extractfile(member)
                content = file.read(left) if file else b""
                left -= len(content)
                yield member.name, content
    except _BROKEN_TAR as error:
        raise not_understood(source, where) from error


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return len(name) <= 400 and all(_FILE.fullmatch(part) and ".." not in part for part in parts)


def number_of(word: object, most: float = 1e18) -> float | None:
    """Return a text's number, finite and not negative, as `df` or a header gives it; else None."""
    text = word.strip() if isinstance(word, str) else ""
    if not re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", text, re.ASCII):
        return None
    number = float(text)
    return number if number <= most else None


def text_of(done: Completed, doing: str, where: str, hint: str = "") -> str:
    """Return what a command printed; `doing` is what it was for, as "read the host's facts".

    Raises CommandError with its words where it failed: nothing printed is no answer then.
    """
    if done.exit_code != 0:
        said = clean(done.error_text, 300) or clean(done.text, 300)
        raise CommandError(
            f"cannot {doing}: {said or f'the command exited with status {done.exit_code}'}",
            where=where,
            hint=hint,
            status=done.exit_code,
        )
    return done.text


DF_S = 5
"""Seconds for `df`."""
DF = f"""
df() {{
  if command -v timeout >/dev/null 2>&1; then timeout -s KILL {DF_S} df "$@"
  else command df "$@"; fi
  [ $? -lt 124 ] || echo "df did not respond within {DF_S} s"
}}
"""
"""A shell function: df, which a mount that hangs keeps waiting for ever, ends in time."""


def free_bytes(line: str) -> int | None:
    """Return what is free by a line of `df -Pk`, whose names may hold spaces; None without it."""
    sizes = re.search(r" +[0-9]{1,18} +[0-9]{1,18} +(-?[0-9]{1,18}) +(?:[0-9]{1,4}%|-)( |$)", line)
    return None if sizes is None else max(0, int(sizes[1])) << 10
