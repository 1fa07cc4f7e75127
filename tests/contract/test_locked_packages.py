"""Every package of the locks for hosts can be had, for each processor and Python that they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raycluster import requirements

pytestmark = pytest.mark.local

LOCKS = Path(requirements.__file__).parent
UV = Path(sys.executable).with_name("uv")


@pytest.mark.parametrize("lock", ["node-gpu.txt", "node-cpu.txt", "ray.txt"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_31", "aarch64-manylinux_2_34"])
def test_every_wheel_exists(platform: str, python: str, lock: str, tmp_path: Path) -> None:
    """Resolve on paper, as on a host of that kind; nothing is fetched but the index's pages."""
    machine = ("--python-platform", platform, "--python-version", python)
    wheels = ("--no-deps", "--require-hashes", "--only-binary=:all:", "-r", LOCKS / lock)
    into = ("--dry-run", "--target", tmp_path / "none")
    done = subprocess.run(
        (UV, "pip", "install", *into, *machine, *wheels),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr
