"""Every package of the lock for GPUs can be had, for each processor and Python that it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raycluster import requirements

pytestmark = pytest.mark.local

LOCK = Path(requirements.__file__).with_name("node-gpu.txt")
UV = Path(sys.executable).with_name("uv")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_31", "aarch64-manylinux_2_34"])
def test_every_wheel_exists(platform: str, python: str, tmp_path: Path) -> None:
    """Resolve on paper, as on a host of that kind; nothing is fetched but the index's pages."""
    machine = ("--python-platform", platform, "--python-version", python)
    wheels = ("--require-hashes", "--only-binary=:all:", "-r", LOCK)
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
