"""Files beside their digests: what is read again, and what a changed one is told by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from raycluster.serve.verify import VerifiedFiles, hashed, wrong

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob 7000\0" + CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("digest", [SHA256, GIT])
def test_digests_of_the_hub_and_of_git(file: Path, digest: str) -> None:
    assert hashed(file, digest) == digest


@pytest.mark.parametrize(
    ("size", "digest", "right"),
    [
        (len(CONTENT), SHA256, True),
        (len(CONTENT), GIT, True),
        (len(CONTENT), "", True),  # where the hub tells none, the size is all there is
        (len(CONTENT) + 1, SHA256, False),
        (len(CONTENT), "0" * 64, False),
    ],
)
def test_size_and_digest_count(
    file: Path, tmp_path: Path, size: int, digest: str, right: bool
) -> None:
    record = VerifiedFiles(tmp_path / "record.json")
    names = wrong(record, [("w", size, digest)], {"w": file}, again=False)
    assert names == ([] if right else ["w"])


def test_what_was_right_is_read_again_only_when_it_changed_or_on_request(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = VerifiedFiles(tmp_path / "below" / "record.json")
    assert record.right(file, len(CONTENT), SHA256, again=False)
    record.save()
    record = VerifiedFiles(tmp_path / "below" / "record.json")
    read: list[Path] = []

    def read_file(path: Path, _like: str) -> str:
        read.append(path)
        return SHA256

    monkeypatch.setattr("raycluster.serve.verify.hashed", read_file)
    assert record.right(file, len(CONTENT), SHA256, again=False)
    assert read == []
    assert record.right(file, len(CONTENT), SHA256, again=True)
    os.utime(file, ns=(1, 1))
    assert record.right(file, len(CONTENT), SHA256, again=False)
    assert len(read) == 2


def test_a_wrong_one_is_not_remembered_as_right(file: Path, tmp_path: Path) -> None:
    record = VerifiedFiles(tmp_path / "record.json")
    assert record.right(file, len(CONTENT), SHA256, again=False)
    file.write_bytes(b"x" * len(CONTENT))
    assert not record.right(file, len(CONTENT), SHA256, again=False)
    assert not record.right(file, len(CONTENT), SHA256, again=False)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_record_is_no_record(file: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert VerifiedFiles(path).kept == {}
