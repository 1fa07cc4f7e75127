"""Tiny wheels and installed distributions, made here."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    modules: Mapping[str, str] | None = None,
    program: str = "",
) -> Path:
    """Write a wheel; `program` is `NAME = MODULE:FUNCTION`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **({f"{name}/__init__.py": ""} if modules is None else modules),
        f"{info}/METADATA": _metadata(name, version, requires, extras),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    if program:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{program}\n"
    record = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(each, content)
    return path


def write_index(folder: Path) -> None:
    """Write the pages of a package index over the wheels in a folder, at `simple/` in it."""
    for wheel in folder.glob("*.whl"):
        page = folder / "simple" / wheel.name.partition("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        links = [f'<a href="{_url(w)}">{w.name}</a>' for w in sorted(folder.glob("*.whl"))]
        own = [each for each in links if each.startswith(f'<a href="../../{_stem(wheel)}-')]
        page.write_text(f"<!DOCTYPE html><html><body>{''.join(own)}</body></html>")


def lock_of(folder: Path, *names: str) -> bytes:
    """Return a lock over wheels in a folder, each by `NAME-VERSION`."""
    lines = [
        f"{name.replace('-', '==', 1)} --hash=sha256:{_digest(next(folder.glob(f'{name}-*.whl')))}"
        for name in names
    ]
    return "\n".join(lines).encode()


def _url(wheel: Path) -> str:
    return f"../../{wheel.name}#sha256={_digest(wheel)}"


def _digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _stem(wheel: Path) -> str:
    return wheel.name.partition("-")[0]


def install(folder: Path, **versions: str) -> None:
    """Let a folder look as if these were installed in it."""
    folder.mkdir(exist_ok=True)
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(_metadata(name, version, (), ()))


def _metadata(name: str, version: str, requires: Sequence[str], extras: Sequence[str]) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {each}" for each in requires]
    return "\n".join(lines) + "\n"
