"""The code of this package, as it travels to hosts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable


def python_files(part: str) -> Iterator[tuple[str, bytes]]:
    """Yield the paths, from `raycluster/` on, and contents of a folder's modules, or of one."""
    yield from _walk(resources.files("raycluster") / part, f"raycluster/{part}")


def _walk(place: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for entry in place.iterdir():
            yield from _walk(entry, f"{path}/{entry.name}")
    elif path.endswith((".py", ".lua")):
        yield path, place.read_bytes()
