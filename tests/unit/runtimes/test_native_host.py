"""What runs on hosts, where it can be looked at without one."""

from __future__ import annotations

import ast
import fcntl
import os
import sys
from pathlib import Path

import pytest

from raycluster.contracts import Process, Versions
from raycluster.runtimes.native import NativeRuntime
from raycluster.runtimes.native_program import MODULES, source
from raycluster.transports.local import LocalTransport

CRONTAB = """#!/bin/sh
case $1 in
-l) [ -e "$TABLE" ] || { echo 'no crontab for me' >&2; exit 1; }; cat "$TABLE";;
-r) rm "$TABLE";;
-) cat > "$TABLE";;
esac
"""
REFUSES = "#!/bin/sh\necho 'you are not allowed to use this program' >&2; exit 1\n"
SLEEPER = Process("sleeper", ("sleep", "1000"))


@pytest.mark.parametrize("module", [*MODULES, "supervisor"])
def test_what_travels_is_python_3_8_and_needs_nothing(module: str) -> None:
    tree = ast.parse(source(module), feature_version=(3, 8))
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    begun = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {each.name for node in named for each in node.names} | {n.module or "" for n in begun}
    ours = {f"raycluster.runtimes.{each}" for each in MODULES}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} <= ours


class Crontab:
    """A crontab program of our own, in front of the host's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = folder / "table"
        self.program = folder / "bin/crontab"
        self.program.parent.mkdir()
        self.install(CRONTAB)
        monkeypatch.setenv("TABLE", str(self.table))
        monkeypatch.setenv("PATH", f"{self.program.parent}:{os.environ['PATH']}")

    def install(self, script: str) -> None:
        self.program.write_text(script)
        self.program.chmod(0o755)


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crontab:
    return Crontab(tmp_path, monkeypatch)


def _start(root: Path) -> tuple[NativeRuntime, list[str]]:
    transport, told = LocalTransport("box"), list[str]()
    runtime = NativeRuntime("box", "demo", transport, python=sys.executable, root=str(root))
    runtime.start(SLEEPER, Versions(), {}, told.append)
    return runtime, told


@pytest.mark.parametrize("before", [b"# mine\n@daily x  \n\n", b"\xff\n0 0 * * * date +\\%s\n"])
def test_the_crontab_gets_a_line_and_loses_it(
    crontab: Crontab, tmp_path: Path, before: bytes
) -> None:
    root = tmp_path / "50% of it"
    crontab.table.write_bytes(before)
    runtime, _ = _start(root)
    added = crontab.table.read_bytes()
    assert added.startswith(before)
    line = added.removeprefix(before).decode()
    assert line.startswith("@reboot ")
    assert line.count("\n") == 1
    assert "50\\% of it" in line
    assert "50%" not in line
    _start(root)
    assert crontab.table.read_bytes() == added
    assert "crontab line" in runtime.remove()
    assert crontab.table.read_bytes() == before


def test_a_crontab_that_was_not_there_is_gone_afterwards(crontab: Crontab, tmp_path: Path) -> None:
    runtime, _ = _start(tmp_path / "root")
    assert crontab.table.exists()
    runtime.remove()
    assert not crontab.table.exists()


def test_a_home_that_others_hold_keeps_nobody_from_the_crontab(
    crontab: Crontab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may open a folder may hold a lock on it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".raycluster/other").mkdir(parents=True)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    runtime, _ = _start(tmp_path / "root")
    assert crontab.table.read_text().startswith("@reboot ")
    assert (tmp_path / ".raycluster").stat().st_mode & 0o777 == 0o700
    runtime.remove()
    assert (tmp_path / ".raycluster/other").is_dir()
    os.close(descriptor)


def test_a_crontab_that_cannot_be_used_is_told(crontab: Crontab, tmp_path: Path) -> None:
    crontab.install(REFUSES)
    runtime, told = _start(tmp_path / "root")
    assert told == [
        "will not start by itself after a reboot: crontab: you are not allowed to use this program"
    ]
    assert runtime.remove()[0] == "process sleeper"
