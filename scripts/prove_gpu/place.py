"""The folder of a proof: pieces unpacked, environments made of them, raw results.

Needs the standard library alone, as the machine may have nothing else yet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

MARK = b"@PYTHON@"
SITES = """
import json, site, sysconfig
paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
print(json.dumps(sorted(paths)))
"""
CALLS = ("fallback", "engine", "serve")
PARTS = {"1": "serving", "2": "engine", "3": "engine"}
"""Where the pieces go; those of one place are one tree."""
ENVIRONMENTS = {"without-engine": ("serving",), "whole": ("serving", "engine")}
"""What is in the environments of a proof; the first has no vLLM."""


@dataclass(frozen=True)
class Place:
    """Where a proof happens."""

    folder: Path

    @property
    def results(self) -> Path:
        """What is kept, made when it is missing."""
        folder = self.folder / "results"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def python(self, environment: str) -> str:
        """Return the path of an environment's interpreter."""
        return str(self.folder / environment / "bin" / "python")

    def unpack(self, pieces: Path) -> list[str]:
        """Unpack the pieces of a folder that are not yet here; return their numbers."""
        fresh = []
        for number, part in PARTS.items():
            piece, done = pieces / f"piece-{number}.tar.xz", self.folder / f"piece-{number}"
            if piece.exists() and not done.exists():
                with tarfile.open(piece) as archive:
                    archive.extractall(self.folder / part, filter="tar")
                done.touch()
                fresh.append(number)
        if fresh:
            self.make_environments()
        return fresh

    def make_environments(self) -> None:
        """Make each environment whose parts are here: theirs first, then what the machine has."""
        told = subprocess.run(
            [sys.executable, "-c", SITES], check=True, capture_output=True, text=True
        )
        for name, parts in ENVIRONMENTS.items():
            sites = [self.folder / part / "site" for part in parts]
            if not all(site.exists() for site in sites):
                continue
            home = self.folder / name
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
            [packages] = home.glob("lib/python*/site-packages")
            machines = (
                f"import site; site.addsitedir({path!r})" for path in json.loads(told.stdout)
            )
            (packages / "proof.pth").write_text("\n".join([*map(str, sites), *machines, ""]))
            for site in sites:
                for program in (site / "bin").iterdir():
                    put_program(program, home / "bin" / program.name, self.python(name))


def put_program(source: Path, target: Path, python: str) -> None:
    """Copy a program for an environment, whose Python it names then."""
    if target.exists():
        return
    shutil.copy2(source, target)
    text = source.read_bytes()
    if MARK in text.partition(b"\n")[0]:
        target.write_bytes(text.replace(MARK, os.fsencode(python), 1))
