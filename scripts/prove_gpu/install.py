"""The environments of a proof from a package index, for a machine with a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

from raycluster.core import tested_versions

from .pack import uv

CHECKOUT = Path(__file__).parents[2]
SERVING = (str(CHECKOUT), f"ray[serve]=={tested_versions.RAY}")
ENVIRONMENTS = {
    "without-engine": ("torch", "transformers[serving]>=5,<6", "accelerate"),
    "whole": (f"vllm=={tested_versions.VLLM}",),
}


def install(folder: Path) -> None:
    """Make them; some GB are fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, more in ENVIRONMENTS.items():
        home = folder / name
        subprocess.run([*uv("venv"), "--quiet", "--clear", home], check=True)
        command = [*uv("pip", "install"), "--python", home / "bin" / "python", *SERVING, *more]
        subprocess.run(command, check=True)
