"""Pythons that seem to be those of nodes, without the gigabytes of a real one."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def python_with_ray(folder: Path) -> Path:
    """Make a Python that has a package by the name of Ray: what is tried beforehand finds it."""
    made = folder / "bin/python"
    if not made.exists():
        venv.create(folder, symlinks=True)
        packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
        told = Path(packages, "ray-1.0.dist-info/METADATA")
        told.parent.mkdir()
        told.write_text("Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n")
    return made
