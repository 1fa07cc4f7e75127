"""What of this package travels to where a load is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from raycluster.bench.remote import code

PROGRAM = "import raycluster.bench.remote as remote; print(remote.__file__)"


def test_the_code_that_travels_needs_nothing_of_what_stays(tmp_path: Path) -> None:
    packed = tmp_path / "code.zip"
    packed.write_bytes(code())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(packed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(packed))
