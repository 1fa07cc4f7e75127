"""What a shell completes: bash itself, with the script that the program gives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SPEC = """
cluster.name = "c"
head.host = "a"
workers = [{ host = "b", name = "gpu-1" }, { host = "d", name = "gpu-2" }]
gateway.on = "all"
models = [{ name = "Org/Big" }]
"""
BASH = """
eval "$SCRIPT"
complete -p raycluster >/dev/null || exit 9
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_raycluster_completion raycluster
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(folder: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in a folder that is its home too."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ("bash", "--norc", "-c", script, "bash", *words),
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8", **env},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the program gives bash, which it finds out by itself."""
    return bash(tmp_path_factory.mktemp("home"), "raycluster --show-completion; true").stdout


def completed(folder: Path, script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    done = bash(folder, BASH, "raycluster", *words, SCRIPT=script)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec, and with another below it."""
    (tmp_path / "cluster.toml").write_text(SPEC)
    (tmp_path / "other.toml").write_text('cluster.name = "o"\nhead.host = "x"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sta",), {"status"}),
        (("exec", "gpu-1"), {"gpu-1", "gpu-1/gateway"}),
        (("ssh", ""), {"head", "gpu-1", "gpu-2"}),
        (("logs", "g"), {"gateway", "gpu-1", "gpu-2", "gpu-1/gateway", "gpu-2/gateway"}),
        (("logs", "head", "O"), {"Org/Big"}),
        (("logs", "--spec", "other.toml", "h"), {"head"}),
        (("up", "--only", "w"), {"workers"}),
    ],
)
def test_bash_offers_what_the_spec_names(
    folder: Path, script: str, words: tuple[str, ...], offered: set[str]
) -> None:
    assert set(completed(folder, script, *words)) == offered


def test_without_a_spec_or_with_a_wrong_one_nothing_is_offered_and_nothing_said(
    tmp_path: Path, script: str
) -> None:
    assert completed(tmp_path, script, "logs", "") == []
    (tmp_path / "cluster.toml").write_text("cluster = 1\n")
    assert completed(tmp_path, script, "logs", "") == []
