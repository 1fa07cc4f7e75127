from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import subprocess, sys
from raycluster.serve.capture import Capture
print("before", flush=True)
capture = Capture()
print("ours", flush=True)
subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('the child')"], check=True)
open(sys.argv[1], "w").write(capture.text())
"""


def run(tmp_path: Path, stdout: object, stderr: object) -> str:
    result = tmp_path / "result"
    argv = [sys.executable, "-c", PROGRAM, str(result)]
    subprocess.run(argv, check=True, stdout=stdout, stderr=stderr)  # type: ignore[call-overload]
    return result.read_text()


def test_reads_back_what_it_and_its_children_wrote(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        text = run(tmp_path, out, err)
    assert text.splitlines() == ["ours", "", "the child"]


def test_a_pipe_cannot_be_read_back(tmp_path: Path) -> None:
    assert run(tmp_path, subprocess.PIPE, subprocess.PIPE) == ""
