"""Writes the archive: whole or not at all, for its owner alone."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from raycluster.core.errors import UsageError


def refuse_existing(path: Path) -> None:
    """Raise UsageError where there is something already, or no folder to write in."""
    if path.exists() or path.is_symlink():
        raise UsageError("already exists", where=str(path), hint="add --force to replace it")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise UsageError where the file cannot be made."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("there is no such folder", where=str(folder))
    if path.is_dir():
        raise UsageError("is a folder; name a file", where=str(path))
    if not os.access(folder, os.W_OK):
        raise UsageError("cannot be written in", where=str(folder))


def write(path: Path, root: str, files: Mapping[str, bytes], *, when: float) -> int:
    """Write the files under `root` as .tar.gz; return its bytes. `when` is their time.

    Nothing is left where that fails. Raises UsageError.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{root}/{name}")
                info.size, info.mode, info.mtime = len(content), 0o600, int(when)
                tar.addfile(info, io.BytesIO(content))
        size = Path(temporary).stat().st_size
        Path(temporary).replace(path)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error
    else:
        temporary = None
        return size
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
