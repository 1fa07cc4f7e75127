"""Adds tables at the end of TOML files that people write, whole or not at all."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.spec.example import toml_value

WRITABLE = 0o222


def lines_of(name: str, table: Mapping[str, Any], comment: str) -> str:
    """Return a table of a list as TOML; tables in it follow it."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping) and value}
    lines = [f"# {clean(comment, 400)}", f"[[{name}]]", *_pairs(plain)]
    for key, values in inner.items():
        lines += ["", f"[{name}.{key}]", *_pairs(values)]
    return "\n".join(lines) + "\n"


def append(path: Path, block: str, check: Callable[[str], object], *, new: bool = False) -> None:
    """Add lines at the end of a file, which is otherwise left byte for byte as it is.

    `check` raises where the whole text would be wrong. Raises UsageError and RayclusterError.
    """
    target = path.resolve()
    before = _content(path, new=new)
    mark = b"\r\n" if b"\r\n" in before else b"\n"
    gap = mark if before.strip() else b""
    ended = before if not before or before.endswith(b"\n") else before + mark
    after = ended + gap + block.encode().replace(b"\n", mark)
    try:
        text = after.decode("utf-8-sig").replace("\r\n", "\n")
        tomllib.loads(text)
    except ValueError as error:  # of TOML and of UTF-8 alike
        raise UsageError(
            f"nothing was added: {error}",
            where=str(path),
            hint="where a list stands on one line, as `models = [...]`, write its entries as "
            "[[models]] tables first",
        ) from error
    check(text)
    _replace(target, before, after)


def _content(path: Path, *, new: bool) -> bytes:
    try:
        if path.exists() and not path.stat().st_mode & WRITABLE:
            raise UsageError("is read-only", where=str(path), hint=f"chmod u+w {path}")
        return path.read_bytes()
    except FileNotFoundError as error:
        if new:
            return b""
        raise UsageError("no such file", where=str(path), hint="raycluster init") from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _replace(target: Path, before: bytes, after: bytes) -> None:
    """Write beside the file and take its name; mode and owner stay."""
    draft: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        draft = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            seen = target.stat()
            draft.chmod(seen.st_mode & 0o7777)
            with suppress(PermissionError):
                os.chown(draft, seen.st_uid, seen.st_gid)
        else:
            draft.chmod(0o644)
        if (target.read_bytes() if target.exists() else b"") != before:
            raise RayclusterError("changed meanwhile", where=str(target), hint="run this again")
        draft.replace(target)
        draft = None
    except OSError as error:
        raise RayclusterError(
            f"cannot be written: {error.strerror}; it is as it was", where=str(target)
        ) from error
    finally:
        if draft:
            draft.unlink(missing_ok=True)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None]
