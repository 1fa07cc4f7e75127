"""A host's folder for archives, on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from raycluster.apply.distribution import image_staging
from raycluster.apply.distribution.image_staging import (
    Archive,
    StagingArea,
    clear_staging,
    open_staging,
)
from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import Runtime
from raycluster.hosts.fleet import Connected
from raycluster.hosts.transports.local import LocalTransport
from raycluster.serve.transfer import PART
from raycluster.spec import ClusterSpec

CONTENT = bytes(range(256)) * 100
ARCHIVE = Archive(len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), ("sha256:1",))


@pytest.fixture
def host() -> Connected:
    table = {"cluster": {"name": "q"}, "head": {"transport": "local"}}
    (head,) = ClusterSpec.model_validate(table).hosts
    return Connected(head, LocalTransport("here"), cast(Runtime, None))


@pytest.fixture
def opened(host: Connected, tmp_path: Path) -> Iterator[StagingArea]:
    yield open_staging(host, str(tmp_path), "q")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(CONTENT)
    return path


def test_the_folder_is_the_user_s_own_and_holds_programs_that_run(
    opened: StagingArea, tmp_path: Path
) -> None:
    folder = tmp_path / f"raycluster-{os.getuid()}-q"
    assert (opened.folder, opened.python) == (str(folder), True)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("transfer.py", "docker_image_staging.py"):
        argv = (sys.executable, "-I", folder / name)
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stderr
        assert "ModuleNotFoundError" not in said
        assert "SyntaxError" not in said


def test_a_folder_that_somebody_else_laid_there_is_left_alone(
    host: Connected, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    usual = tmp_path / f"raycluster-{os.getuid()}-q"
    usual.symlink_to(tmp_path / "elsewhere")
    folder = Path(open_staging(host, str(tmp_path), "q").folder)
    assert folder != usual
    assert (folder.stat().st_mode & 0o7777, folder.stat().st_uid) == (0o700, os.getuid())
    assert open_staging(host, str(tmp_path), "q").folder == str(folder)  # and goes on there
    assert clear_staging(host, str(tmp_path), "q") == (f"folder {folder}",)
    assert sorted(tmp_path.iterdir()) == sorted([usual, tmp_path / "elsewhere"])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_in_which_others_may_rename_is_refused(host: Connected, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(HostError, match="others may rename what is in /"):
        open_staging(host, str(tmp_path), "q")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ours_is_made_private_again(host: Connected, tmp_path: Path) -> None:
    usual = tmp_path / f"raycluster-{os.getuid()}-q"
    usual.mkdir()
    usual.chmod(0o777)
    assert open_staging(host, str(tmp_path), "q").folder == str(usual)
    assert usual.stat().st_mode & 0o7777 == 0o700


def test_an_upload_goes_on_where_it_ended(
    opened: StagingArea, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_staging, "PIECE", 10_000)
    part = Path(opened.file(ARCHIVE) + PART)
    part.write_bytes(CONTENT[:12_000])
    assert list(opened.upload(file, ARCHIVE)) == [22_000, len(CONTENT)]
    assert part.read_bytes() == CONTENT
    assert part.stat().st_mode & 0o077 == 0 or part.stat().st_uid == os.getuid()


def test_what_is_there_whole_is_not_sent(opened: StagingArea, file: Path) -> None:
    Path(opened.file(ARCHIVE)).write_bytes(CONTENT)
    assert list(opened.upload(file, ARCHIVE)) == []


def test_a_file_that_changes_meanwhile_is_an_error(
    opened: StagingArea, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_staging, "PIECE", 10_000)
    uploading = opened.upload(file, ARCHIVE)
    assert next(uploading) == 10_000
    with Path(opened.file(ARCHIVE) + PART).open("ab") as part:
        part.write(b"x")
    with pytest.raises(CommandError, match="has changed in the meantime"):
        next(uploading)


def test_what_a_later_run_can_use_stays_and_nothing_else(
    opened: StagingArea, host: Connected, tmp_path: Path
) -> None:
    part = Path(opened.file(ARCHIVE) + PART)
    part.write_bytes(CONTENT)
    opened.close()
    assert [path.name for path in part.parent.iterdir()] == [part.name]
    part.unlink()
    opened.close()
    assert not part.parent.exists()
    again = open_staging(host, str(tmp_path), "q")
    assert clear_staging(host, str(tmp_path), "q") == (f"folder {again.folder}",)
    assert clear_staging(host, str(tmp_path), "q") == ()
