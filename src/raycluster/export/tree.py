"""Files of an export: what they hold, and a folder that is written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raycluster.core.errors import UsageError

MARK = ".raycluster-export"
"""A file that tells an export from other folders, which are never replaced."""


@dataclass(frozen=True)
class ExportedFile:
    """One file: what it holds, and its mode."""

    content: bytes = field(repr=False)
    mode: int = 0o644


Tree = Mapping[str, ExportedFile]
"""Relative path -> file."""


def script(content: bytes) -> ExportedFile:
    """Return a file that can be run."""
    return ExportedFile(content, 0o755)


def secret(content: bytes) -> ExportedFile:
    """Return a file that its owner alone reads."""
    return ExportedFile(content, 0o600)


def write(tree: Tree, folder: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Make `folder` of the files and return their paths; with `force` in place of a former export.

    Nothing is left half made. Raises UsageError.
    """
    check_free(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, entry in {**tree, MARK: ExportedFile(b"")}.items():
                _write(making / name, entry)
            making.chmod(0o755)
            _put_in_place(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    return tuple(folder / name for name in sorted(tree))


def check_free(folder: Path, *, force: bool) -> None:
    """Raise UsageError where `folder` may not be made."""
    if not folder.is_symlink() and not folder.exists():
        return
    if not force:
        raise UsageError(
            "already exists", where=str(folder), hint="add --force, or choose another folder"
        )
    if folder.is_symlink() or not (folder / MARK).is_file():
        raise UsageError(
            "already exists, and is not an earlier export",
            where=str(folder),
            hint="name another folder with --output",
        )


def _write(path: Path, entry: ExportedFile) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(entry.content)
    path.chmod(entry.mode)


def _put_in_place(making: Path, folder: Path) -> None:
    if not folder.exists():
        making.rename(folder)
        return
    former = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        folder.rename(former / "export")
        making.rename(folder)
    finally:
        shutil.rmtree(former, ignore_errors=True)


class _Dumper(yaml.SafeDumper):
    """Writes the same value twice rather than an alias, and texts of many lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002  # whatever it writes
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value.rstrip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(*documents: Mapping[str, Any], comment: str = "") -> bytes:
    """Return the documents as one file, below `comment`, a line or more without their signs."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    body = "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        for document in documents
    )
    return (head + body).encode()
