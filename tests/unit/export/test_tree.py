"""A folder that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycluster.core.errors import UsageError
from raycluster.export.tree import ExportedFile, script, secret, write

TREE = {
    "a/run.sh": script(b"#!/bin/sh\n"),
    "a/token": secret(b"t"),
    "README.md": ExportedFile(b"r"),
}


def modes(folder: Path) -> dict[str, int]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.stat().st_mode & 0o777 for p in found}


def test_files_have_their_modes_and_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert write(TREE, out) == (out / "README.md", out / "a/run.sh", out / "a/token")
    assert modes(out) == {
        ".raycluster-export": 0o644,
        "README.md": 0o644,
        "a/run.sh": 0o755,
        "a/token": 0o600,
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_earlier_export_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(TREE, out)
    with pytest.raises(UsageError, match="already exists"):
        write({"b": ExportedFile(b"")}, out)
    assert "a/token" in modes(out)
    write({"b": ExportedFile(b"")}, out, force=True)
    assert set(modes(out)) == {".raycluster-export", "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_other_folders_and_files_are_never_replaced(tmp_path: Path, force: bool) -> None:
    mine, link, file = tmp_path / "mine", tmp_path / "link", tmp_path / "file"
    mine.mkdir()
    (mine / "thesis").write_text("mine")
    write(TREE, tmp_path / "export")
    link.symlink_to(tmp_path / "export")
    file.write_text("f")
    for path in (mine, link, file):
        with pytest.raises(UsageError, match="already exists"):
            write(TREE, path, force=force)
    assert (mine / "thesis").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write({"a": ExportedFile(b""), "a/b": ExportedFile(b"")}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
