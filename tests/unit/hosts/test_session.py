"""Which spec a command reads, and what it asks before it removes anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-c", "from raycluster.cli import main; main()")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(
        'cluster.name = "c"\nhead.transport = "local"\nruntime.kind = "native"\n'
        f'runtime.python = "{sys.executable}"\nmodels = [{{ name = "m" }}]\n'
    )
    return path


def ran(home: Path, *words: str | Path) -> tuple[int, str]:
    """Run the program without a terminal; return its exit code and what it wrote."""
    done = subprocess.run(
        (*PROGRAM, *map(str, words)),
        capture_output=True,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("words", [("CLUSTER",), ("--spec", "CLUSTER"), ("-s", "CLUSTER"),
                                   ("CLUSTER", "-s", "CLUSTER")])  # fmt: skip
def test_the_spec_is_an_argument_or_an_option(spec: Path, words: tuple[str, ...]) -> None:
    named = [str(spec) if word == "CLUSTER" else word for word in words]
    assert ran(spec.parent, "down", "--yes", *named) == (
        0,
        "c is down: nothing to remove\nhead: nothing of this cluster was found\n",
    )


@pytest.mark.parametrize("command", ["check", "deploy", "down", "plan", "status", "tunnel", "up"])
def test_two_specs_are_one_too_many(spec: Path, command: str) -> None:
    code, said = ran(spec.parent, command, "other.toml", "--spec", spec)
    assert code == 2
    assert said == (f"error: other.toml and --spec {spec}: two specs\n  next: give one of them\n")


def test_nothing_is_removed_where_nobody_can_be_asked(spec: Path) -> None:
    code, said = ran(spec.parent, "down", spec)
    assert code == 2
    assert "no terminal to ask for confirmation" in said and "next: add --yes" in said
