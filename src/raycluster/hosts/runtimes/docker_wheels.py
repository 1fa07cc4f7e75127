"""What an image lacks, resolved and fetched on this machine for another: never built, never run.

What a host says of its image goes to uv as pins alone: anything else is refused here.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raycluster.core.errors import ImageError
from raycluster.serve.adding import COMPILED, HASHED, lacking, resolved

GLIBC = (17, 28, *range(31, 41))
"""Minor versions of glibc 2 that uv has platforms for."""
QUIET_S = 1800.0
LONGEST = 600
_PIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?==[a-z0-9][a-z0-9.!+_-]*")


class NoWheelsError(Exception):
    """Why it cannot be had on this machine, as uv said it."""


@dataclass(frozen=True)
class WheelTarget:
    """What wheels have to fit: a Python, its machine and glibc, and what is installed there."""

    python: str
    machine: str
    glibc: int
    have: tuple[str, ...]
    requirements: tuple[str, ...]
    lock: bytes

    @property
    def platform(self) -> str:
        """The platform by uv's name."""
        return f"{self.machine}-manylinux_2_{max(g for g in GLIBC if g <= self.glibc)}"


class Store:
    """Archives of this run, each made once, however many hosts ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[WheelTarget, Path | NoWheelsError] = {}

    def archive(self, target: WheelTarget) -> Path:
        """Return a gzipped tar of installed packages. Raises NoWheelsError."""
        with self._lock:
            made = self._made.get(target)
            if made is None:
                folder = Path(tempfile.mkdtemp(prefix="raycluster-wheels-"))
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                made = self._made[target] = _made(target, folder)
        if isinstance(made, NoWheelsError):
            raise made
        return made


STORE = Store()


def checked_pins(told: Sequence[object], where: str) -> tuple[str, ...]:
    """Return what an image is said to hold, if all of it are pins. Raises ImageError."""
    for pin in told:
        if not isinstance(pin, str) or len(pin) > 200 or not _PIN.fullmatch(pin):
            raise ImageError(
                f"the image's package list is not valid: {str(pin)[:60]!r}",
                where=where,
                hint="check the image: its Python reports invalid package names or versions",
            )
    return tuple(sorted({str(pin) for pin in told}))


def _made(target: WheelTarget, folder: Path) -> Path | NoWheelsError:
    try:
        tree = _installed(target, folder)
    except NoWheelsError as error:
        return error
    archive = folder / "packages.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(tree, arcname="", filter=_everybodys)
    shutil.rmtree(tree)
    return archive


def _everybodys(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (entry.isfile() or entry.isdir()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _installed(target: WheelTarget, folder: Path) -> Path:
    have, wanted, pins = (folder / name for name in ("have.txt", "wanted.txt", "pins.txt"))
    have.write_text("\n".join(target.have))
    wanted.write_text("\n".join(target.requirements))
    pins.write_bytes(target.lock)
    fits = ("--python-version", target.python, "--python-platform", target.platform)
    common = ("--quiet", "--only-binary", ":all:", "--python", sys.executable, *fits)
    _run(("pip", "compile", *common, *COMPILED, *resolved(have, wanted, pins)), folder)
    pins.write_text(lacking(pins.read_text(), target.have))
    into = ("--target", str(folder / "tree"), "--no-deps", *HASHED, str(pins))
    _run(("pip", "install", *common, *into), folder)
    return folder / "tree"


def _run(arguments: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            (_uv(), *arguments),
            cwd=folder,  # no project's settings for uv are found there
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=QUIET_S,
            check=False,
            env={**os.environ, "UV_HTTP_RETRIES": os.environ.get("UV_HTTP_RETRIES", "1")},
        )
    except subprocess.TimeoutExpired:
        raise NoWheelsError(f"uv did not finish within {QUIET_S:.0f} s") from None
    except OSError as error:
        raise NoWheelsError(f"uv cannot be run: {error.strerror}") from error
    if done.returncode:
        raise NoWheelsError(done.stdout.decode("utf-8", "replace"))


def _uv() -> str:
    from uv import find_uv_bin

    try:
        return str(find_uv_bin())
    except FileNotFoundError:
        return "uv"


def is_conflict(said: str, have: Sequence[str]) -> bool:
    """Return whether uv names what is installed as the reason, and not just that it found none."""
    why = cause(said)
    return "No solution found" in said and any(f" {pin}" in why for pin in have)


def cause(said: str) -> str:
    """Return on one short line why uv, pip or an import failed; it may be a host's word."""
    return "".join(c for c in _cause(said) if c.isprintable())[:LONGEST]


def _cause(said: str) -> str:
    if "╰─▶" in said:
        rest = said.partition("╰─▶")[2].split("\n\n")[0].split("hint:")[0]
        return " ".join(rest.split())
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [n for n, line in enumerate(lines) if line.lower().startswith(("cause", "caused by"))]
    errors = [line for line in lines if line.lower().startswith("error:")]
    if causes and "No solution found" in said:
        whole = " ".join(lines[causes[0] :]).partition("hint:")[0]
        return whole.partition(":")[2].strip()
    if causes:
        return lines[causes[-1]].partition(":")[2].strip()
    plain = errors or lines or ["no reason given"]
    return plain[-1].removeprefix("error:").removeprefix("ERROR:").strip()
