"""The program where standard streams are closed, full, or read by nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("raycluster")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("schema >&-", 0, ""),
        ("schema <&- 2>&- >/dev/null", 0, ""),
        ("schema >/dev/full", 1, "error: cannot write the output: the disk is full\n"),
        ("plan absent.toml 2>&-", 2, ""),
        ("plan absent.toml >&-", 2, "error: absent.toml: no such file\n"),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, line: str, code: int, said: str) -> None:
    done = _shell(f"{PROGRAM} {line}", tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert said or done.stderr == ""


def test_a_reader_that_went_away(tmp_path: Path) -> None:
    done = _shell(f"{{ {PROGRAM} schema; echo $? >status; }} | :", tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "status").read_text() == "1\n"


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("bash", "-c", line), cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
