"""What runs on hosts, where it can be looked at without one."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycluster.core.errors import HostError
from raycluster.core.interfaces import Process, Versions
from raycluster.core.wait import wait_for
from raycluster.hosts.runtimes import native_systemd
from raycluster.hosts.runtimes.native import NativeRuntime
from raycluster.hosts.runtimes.native_processes import _look
from raycluster.hosts.runtimes.native_remote import MODULES, source
from raycluster.hosts.transports.local import LocalTransport

CRONTAB = """#!/bin/sh
case $1 in
-l) [ -e "$TABLE" ] || { echo 'no crontab for me' >&2; exit 1; }; cat "$TABLE";;
-r) rm "$TABLE";;
-) cat > "$TABLE";;
esac
"""
REFUSES = "#!/bin/sh\necho 'you are not allowed to use this program' >&2; exit 1\n"
FAILS = """#!/bin/sh
[ "$1" != -l ] || { echo "$SAID" >&2; exit 1; }
cat > "$TABLE"
"""
SLEEPER = Process("sleeper", ("sleep", "1000"))


@pytest.mark.parametrize("module", [*MODULES, "core.last_words", "hosts.runtimes.supervisor"])
def test_what_travels_is_python_3_8_and_needs_nothing(module: str) -> None:
    tree = ast.parse(source(module), feature_version=(3, 8))
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    begun = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {each.name for node in named for each in node.names} | {n.module or "" for n in begun}
    ours = {f"raycluster.{each}" for each in (*MODULES, "core.last_words")}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} <= ours


class Crontab:
    """A crontab program of our own, in front of the host's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = folder / "table"
        self.program = folder / "bin/crontab"
        self.program.parent.mkdir()
        self.install(CRONTAB)
        monkeypatch.setenv("PATH", f"{self.program.parent}:{os.environ['PATH']}")

    def install(self, script: str) -> None:
        self.program.write_text(script.replace("$TABLE", str(self.table)))
        self.program.chmod(0o755)


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crontab:
    return Crontab(tmp_path, monkeypatch)


def _start(root: Path, process: Process = SLEEPER) -> tuple[NativeRuntime, list[str]]:
    transport, told = LocalTransport("box"), list[str]()
    runtime = NativeRuntime("box", "demo", transport, python=sys.executable, root=str(root))
    runtime.start(process, Versions(), {}, told.append)
    return runtime, told


@pytest.mark.parametrize("before", [b"# mine\n@daily x  \n\n", b"\xff\n0 0 * * * date +\\%s\n"])
def test_the_crontab_gets_two_lines_and_loses_them(
    crontab: Crontab, tmp_path: Path, before: bytes
) -> None:
    root = tmp_path / "50% of it"
    crontab.table.write_bytes(before)
    runtime, _ = _start(root)
    added = crontab.table.read_bytes()
    assert added.startswith(before)
    boot, minute, rest = added.removeprefix(before).decode().split("\n")
    assert (boot.partition(" ")[0], minute[:10], rest) == ("@reboot", "* * * * * ", "")
    assert boot.removeprefix("@reboot ") == minute[10:]
    assert "50\\% of it" in boot
    assert "50%" not in boot
    _start(root)
    assert crontab.table.read_bytes() == added
    assert "crontab lines" in runtime.remove()
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
        "will not restart automatically after a reboot or a kill: "
        "crontab: you are not allowed to use this program"
    ]
    assert runtime.remove()[0] == "process sleeper"


@pytest.mark.parametrize(
    "said",
    [
        "crontab: cannot open the spool: no crontab for now",
        "no crontab for me\ncrontab: input/output error",
        "",
        "PAM: no crontab",
    ],
)
def test_a_crontab_that_cannot_be_read_is_left_as_it_is(
    crontab: Crontab, tmp_path: Path, said: str
) -> None:
    crontab.table.write_bytes(b"@daily mine\n")
    crontab.install(FAILS.replace('"$SAID"', shlex.quote(said)))
    runtime, told = _start(tmp_path / "root")
    assert told[0].startswith("will not restart automatically after a reboot or a kill: crontab: ")
    runtime.remove()
    assert crontab.table.read_bytes() == b"@daily mine\n"


def test_lines_that_cannot_be_taken_away_are_told(crontab: Crontab, tmp_path: Path) -> None:
    runtime, _ = _start(tmp_path / "root")
    added = crontab.table.read_bytes()
    crontab.install(FAILS)
    with pytest.raises(HostError, match="crontab") as caught:
        runtime.remove()
    assert "# raycluster:demo@" in caught.value.hint
    assert [f.health for f in runtime.observe()] == ["stopped"]
    _cron(crontab)  # what is stopped stays so
    assert [f.health for f in runtime.observe()] == ["stopped"]
    assert crontab.table.read_bytes() == added
    crontab.install(CRONTAB)
    assert "crontab lines" in runtime.remove()
    assert runtime.remove() == ()


ORPHANS = """
note=$1
setsid sh -c 'trap "" TERM; echo $$ >> "$0"; while :; do sleep 1; done' "$note" &
env -i sleep 1000 & echo $! >> "$note"
while [ "$(wc -l < "$note")" -lt 2 ]; do sleep 0.01; done
touch "$note.whole"
wait
"""


def test_a_killed_supervisor_comes_back_without_what_it_left(
    crontab: Crontab, tmp_path: Path
) -> None:
    """By the very line of the crontab, as cron runs it, twice at once; and once in two clusters."""
    note, root = tmp_path / "note", tmp_path / "root"
    process = Process("p", ("sh", "-c", ORPHANS, "sh", str(note)))
    runtime, _ = _start(root, process)
    other, _ = _start(tmp_path / "other")
    former = _state(tmp_path / "other")
    _wait(lambda: note.with_name("note.whole").exists())
    orphans = [int(word) for word in note.read_text().split()]
    note.rename(tmp_path / "former")
    note.with_name("note.whole").unlink()
    os.kill(_state(root)["supervisor"][0], signal.SIGKILL)
    _wait(lambda: [f.health for f in runtime.observe()] == ["stopped"])
    assert all(_runs(pid) for pid in orphans)
    _cron(crontab)
    _wait(lambda: [f.health for f in runtime.observe()] == ["running"])
    assert not any(_runs(pid) for pid in orphans)
    _wait(lambda: note.with_name("note.whole").exists())
    assert len(note.read_text().split()) == 2
    assert _state(tmp_path / "other") == former
    now = _state(root)
    _cron(crontab)  # all checks passed: nothing is to be done
    assert _state(root) == now
    runtime.remove()
    assert crontab.table.read_text().count("# raycluster:") == 2
    other.remove()
    assert not crontab.table.exists()


def test_what_is_stopped_stays_stopped(crontab: Crontab, tmp_path: Path) -> None:
    """A stop that was interrupted has said so before it ended anything."""
    runtime, _ = _start(tmp_path / "root")
    folder = tmp_path / "root/roles/sleeper"
    (folder / "stopped").touch()
    os.kill(_state(tmp_path / "root")["supervisor"][0], signal.SIGKILL)
    _wait(lambda: [f.health for f in runtime.observe()] == ["stopped"])
    _cron(crontab)
    keep = [sys.executable, str(tmp_path / "root/supervisor.py"), "--keep", str(folder)]
    subprocess.run(keep, check=True, timeout=20)
    assert [f.health for f in runtime.observe()] == ["stopped"]
    _start(tmp_path / "root")
    assert [f.health for f in runtime.observe()] == ["running"]
    runtime.remove()


def _cron(crontab: Crontab) -> None:
    """Run every line, as cron does, all at once."""
    env = {"HOME": str(Path.home()), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    commands = [
        line.removeprefix("@reboot ").removeprefix("* * * * * ").replace("\\%", "%")
        for line in crontab.table.read_text().splitlines()
    ]
    runs = [subprocess.Popen(["/bin/sh", "-c", each], env=env) for each in commands]
    assert [run.wait(20) for run in runs] == [0] * len(commands)


def _runs(pid: int) -> bool:
    seen = _look(pid)
    return seen is not None and not seen.zombie


def _state(root: Path) -> dict[str, Any]:
    [file] = root.glob("roles/*/state.json")
    told: dict[str, Any] = json.loads(file.read_text())
    return told


def _wait(condition: Callable[[], object]) -> None:
    assert wait_for(lambda: condition() or None, timeout=30) is not None


HERE = Path(__file__).parent
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def cgroup() -> Iterator[str]:
    """Make a control group for a user's manager."""
    name = f"raycluster-test-{os.getpid()}"
    tops = [Path("/sys/fs/cgroup", top) for top in ("", "systemd", "unified")]
    made = [top / name / "user" for top in tops if (top / "cgroup.procs").exists()]
    for folder in made:
        folder.mkdir(parents=True)
    yield name
    for folder in made:
        below = [*folder.rglob("*"), folder, folder.parent]
        for each in sorted((f for f in below if f.is_dir()), reverse=True):
            assert wait_for(lambda each=each: _removed(each), timeout=20)  # type: ignore[misc]


def _removed(folder: Path) -> bool | None:
    try:
        folder.rmdir()
    except OSError:
        return None
    return True


@pytest.mark.parametrize(
    ("user", "file"),
    [("jane", "jane"), (r"ACME\jane", r"ACME\\jane"), ("üx", r"\303\274x"), ("a b", "a b")],
)
def test_users_that_linger_are_looked_for_by_logind_s_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, file: str
) -> None:
    (tmp_path / file).touch()
    monkeypatch.setattr(native_systemd, "LINGER", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name=user))
    done: subprocess.CompletedProcess[bytes] = subprocess.CompletedProcess((), 0)
    monkeypatch.setattr(native_systemd, "_systemctl", lambda *_: done)
    assert native_systemd.lingers()


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists(),
    reason="a user's manager of its own needs root and systemd",
)
def test_where_the_users_systemd_lingers_it_keeps_the_supervisor(
    tmp_path: Path, cgroup: str
) -> None:
    manager, program = HERE / "user_manager.sh", HERE / "under_systemd.py"
    done = subprocess.run(
        [*APART, str(manager), cgroup, sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
