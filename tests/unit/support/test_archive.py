"""The archive is there whole or not at all, and its owner's alone."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from raycluster.core.errors import HostError, UsageError
from raycluster.support.archive import ArchiveParts, check_folder, refuse_existing, write


def test_it_holds_the_files_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    size = write(path, "c-1", {"x/y.txt": b"1", "z": b""}, when=1e9)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == size
    with tarfile.open(path) as tar:
        assert {m.name: m.mode for m in tar} == {"c-1/x/y.txt": 0o600, "c-1/z": 0o600}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


class Interrupted(Mapping[str, bytes]):
    """Files of which the second cannot be had: Ctrl-C came."""

    def __getitem__(self, name: str) -> bytes:
        if name == "b":
            raise KeyboardInterrupt
        return b"1"

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2


def test_nothing_is_left_of_one_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write(path, "c", Interrupted(), when=0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]
    assert path.read_text() == "before"


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    refuse_existing(path)
    path.touch()
    with pytest.raises(UsageError) as caught:
        refuse_existing(path)
    assert caught.value.hint == "add --force to replace it"
    check_folder(path)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UsageError, match="already exists"):
        refuse_existing(path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        check_folder(tmp_path / "no" / "a")
    with pytest.raises(UsageError, match="is a folder"):
        check_folder(tmp_path)
    if os.path.isdir("/proc"):  # noqa: PTH112
        with pytest.raises(UsageError, match="cannot be written"):
            write(Path("/proc/a.tar.gz"), "c", {}, when=0)


def test_of_a_large_file_whole_lines_at_its_end_are_kept() -> None:
    parts = ArchiveParts(limit=30)
    parts.add("a", b"secret\nsecond\nlast\n", limit=10)
    assert parts.files == {"a": b"last\n"}
    assert parts.cut == {"a": 19}
    parts.add("b", b"x\n" * 20)
    assert parts.files["b"] == b"x\n" * 12
    parts.add("c", b"no line end at all, and too long")
    assert parts.files["c"] == b""
    assert parts.size <= 30


def test_what_fails_is_noted_and_all_else_taken() -> None:
    one, all_ = ArchiveParts(), ArchiveParts()
    with one.trying("a"):
        raise HostError("is away", where="h")
    with one.trying("b"):
        one.add("b", b"1")
    one.known.add("s3cret")
    all_.take(one, "hosts/h")
    assert all_.problems == {"hosts/h/a": "is away"}
    assert all_.files == {"hosts/h/b": b"1"}
    assert all_.known == {"s3cret"}
