from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from raycluster.core.errors import HostError, RuntimeUnavailableError
from raycluster.core.interfaces import (
    ROOT,
    Channel,
    Completed,
    Found,
    Gpus,
    Process,
    Runtime,
    Versions,
    Volume,
)
from raycluster.hosts.runtimes.native import NativeRuntime
from raycluster.hosts.transports.local import LocalTransport

VERSIONS = Versions(python="3.11.7", ray="2.60.0")
SLEEPER = Process("sleeper", ("sleep", "1000"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def runtime(root: Path) -> Iterator[NativeRuntime]:
    made = _runtime(root)
    yield made
    made.remove()


def _runtime(root: Path, python: str = sys.executable) -> NativeRuntime:
    return NativeRuntime(
        "box", "demo", LocalTransport("box"), python=python, start_on_boot=False, root=str(root)
    )


def start(runtime: NativeRuntime, process: Process, **files: bytes) -> None:
    runtime.start(process, VERSIONS, files, lambda _: None)


def shell(role: str, script: str) -> Process:
    return Process(role, ("sh", "-c", script))


def state(root: Path, role: str) -> dict[str, list[int]]:
    told: dict[str, list[int]] = json.loads((root / "roles" / role / "state.json").read_text())
    return told


def eventually(true: Callable[[], object], within: float = 20.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def only(runtime: NativeRuntime) -> Found:
    (found,) = runtime.observe()
    return found


class Overheard(LocalTransport):
    """This machine, with what others on a host could read of each command."""

    def __init__(self) -> None:
        super().__init__("box")
        self.words: list[str] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run, and note the words."""
        self.words += [*argv, *(env or {}).values()]
        return super().run(argv, input=input, env=env, timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        """Run, and note the words."""
        self.words += [*argv, *(env or {}).values()]
        return super().stream(argv, env=env, quiet=quiet)


def test_the_environment_of_a_process_is_in_no_command(runtime: NativeRuntime, root: Path) -> None:
    host = Overheard()
    overheard = NativeRuntime(
        "box", "demo", host, python=sys.executable, start_on_boot=False, root=str(root)
    )
    start(overheard, Process("sleeper", ("sleep", "1000"), {"https_proxy": "http://u:hidden@p"}))
    show = ("sh", "-c", 'printf "%s %s" "$https_proxy" "$PWD"')
    inside = overheard.inside("sleeper")
    assert inside.run(show).text == f"http://u:hidden@p {root}"
    assert inside.run(show, env={"https_proxy": "other"}).text == f"other {root}"
    assert b"".join(c for _, c in inside.stream(show)).decode() == f"http://u:hidden@p {root}"
    assert inside.run(("no-such-program",)).exit_code == 127
    assert not [word for word in host.words if "hidden" in word]


def test_is_a_runtime(runtime: NativeRuntime) -> None:
    seam: Runtime = runtime
    assert seam.observe() == ()


def test_what_was_started_is_seen_by_another_run(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    found = only(_runtime(root))
    assert (found.role, found.fingerprint) == ("sleeper", SLEEPER.fingerprint)
    assert (found.health, found.versions, found.detail) == ("running", VERSIONS, "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.started)


def test_argv_environment_and_files_reach_the_process(runtime: NativeRuntime, root: Path) -> None:
    script = 'cat "$0" "$TOKEN" >&2; echo "[$CUDA_VISIBLE_DEVICES] $PATH $CACHE"; exec sleep 1000'
    process = Process(
        "show",
        ("sh", "-c", script, f"{ROOT}/a"),
        {"TOKEN": f"{ROOT}/sub/token", "CACHE": f"{ROOT}/cache"},
        gpus=2,
    )
    runtime.start(process, VERSIONS, {"a": b"A\n", "sub/token": b"B\n"}, lambda _: None)
    programs = Path(sys.executable).parent
    said = b"A\nB\n[0,1] "
    assert eventually(lambda: b"".join(_logs(runtime, "show")).startswith(said))
    line = b"".join(_logs(runtime, "show")).decode().splitlines()[2]
    assert line.split()[1].startswith(f"{programs}:")
    assert line.split()[2] == f"{root}/cache"
    for path in (root / "a", root / "sub/token", root / "roles/show/launch.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("gpus", "devices"),
    [(0, "[]"), (1, "[0]"), ("all", "[unset]"), ((2, 0), "[2,0]"), (("MIG-aaaa",), "[MIG-aaaa]")],
)
def test_gpus(runtime: NativeRuntime, gpus: Gpus, devices: str) -> None:
    script = 'echo "[${CUDA_VISIBLE_DEVICES-unset}]"; exec sleep 1000'
    start(runtime, Process("g", ("sh", "-c", script), gpus=gpus))
    assert eventually(lambda: b"".join(_logs(runtime, "g")).decode() == devices + "\n")


def test_a_crash_is_followed_by_a_restart(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    first = state(root, "sleeper")["child"][0]
    os.kill(first, signal.SIGSEGV)
    assert eventually(lambda: only(runtime).health == "restarting")
    assert eventually(lambda: only(runtime).health == "running")
    assert only(runtime).detail == "restarts: 1; killed by signal 11"
    assert state(root, "sleeper")["child"][0] != first


def test_the_last_words_are_told_without_colours(runtime: NativeRuntime) -> None:
    start(runtime, shell("p", r"sleep 0.2; printf '\033[31mno GPU\033[0m\n\n'; exit 3"))
    assert eventually(lambda: only(runtime).detail.endswith("exited with status 3: no GPU"))


def test_orphans_of_a_crashed_process_do_not_survive_it(
    runtime: NativeRuntime, root: Path, tmp_path: Path
) -> None:
    note = tmp_path / "orphan"
    start(
        runtime, shell("p", f"setsid sleep 1000 & echo $! > {note}.new; mv {note}.new {note}; wait")
    )
    assert eventually(note.exists)
    orphan = int(note.read_text())
    os.kill(state(root, "p")["child"][0], signal.SIGKILL)
    assert eventually(lambda: not runs(orphan))


def test_killed_supervisor_takes_its_child_along_and_start_heals(
    runtime: NativeRuntime, root: Path
) -> None:
    start(runtime, SLEEPER)
    told = state(root, "sleeper")
    os.kill(told["supervisor"][0], signal.SIGKILL)
    assert eventually(lambda: not runs(told["child"][0]))
    assert only(runtime).health == "stopped"
    start(runtime, SLEEPER)
    assert only(runtime).health == "running"


def test_start_replaces_what_has_the_role(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    old = state(root, "sleeper")["child"][0]
    other = Process("sleeper", ("sleep", "2000"))
    start(runtime, other)
    assert not runs(old)
    assert only(runtime).fingerprint == other.fingerprint


def test_two_supervisors_never_run(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    before = state(root, "sleeper")
    command = [sys.executable, str(root / "supervisor.py"), "--keep", str(root / "roles/sleeper")]
    subprocess.run(command, check=True, timeout=20)
    assert state(root, "sleeper") == before


def test_after_a_reboot_all_roles_start_again(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    start(runtime, Process("other", ("sleep", "1000")))
    for role in ("sleeper", "other"):
        os.kill(state(root, role)["supervisor"][0], signal.SIGKILL)
    assert eventually(lambda: {f.health for f in runtime.observe()} == {"stopped"})
    subprocess.run(
        [sys.executable, "-I", "-S", str(root / "supervisor.py"), "--all", str(root)],
        env={},
        check=True,
        timeout=20,
    )
    assert eventually(lambda: [f.health for f in runtime.observe()] == ["running"] * 2)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("", "its state cannot be read"),
        ("[]", "its state cannot be read"),
        ('{"schema": 1}', "its state cannot be read"),
        ('{"schema": 0}', "started by another version of raycluster"),
    ],
)
def test_a_state_that_cannot_be_understood(
    runtime: NativeRuntime, root: Path, content: str, detail: str
) -> None:
    (root / "roles/x").mkdir(parents=True)
    (root / "roles/x/state.json").write_text(content)
    found = only(runtime)
    assert (found.health, found.detail, found.fingerprint) == ("stopped", detail, "")


def test_a_number_given_to_another_process_is_not_ours(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    told = state(root, "sleeper")
    os.kill(told["supervisor"][0], signal.SIGKILL)
    assert eventually(lambda: not runs(told["child"][0]))
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    for key in ("supervisor", "child", "session"):
        told[key] = [stranger.pid, told[key][1]]
    (root / "roles/sleeper/state.json").write_text(json.dumps(told))
    assert only(runtime).health == "stopped"
    runtime.remove()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_remove_finds_every_descendant(runtime: NativeRuntime, root: Path, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"""
        setsid sh -c 'echo $$ >> {note}; exec sleep 1000' &
        (trap '' TERM; echo $$ >> {note}; setsid sleep 1000 &) &
        env -i sleep 1000 & echo $! >> {note}
        wait
    """
    start(runtime, shell("p", script))
    assert eventually(lambda: note.exists() and len(note.read_text().split()) == 3)
    pids = [int(word) for word in note.read_text().split()]
    os.kill(state(root, "p")["supervisor"][0], signal.SIGKILL)  # all become init's children
    assert runtime.remove() == ("process p", f"folder {root}", f"folder {_temp(root)}")
    assert not any(runs(pid) for pid in pids)
    assert not root.exists()
    assert runtime.remove() == ()


def test_remove_ends_processes_whose_folder_is_gone(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    child = state(root, "sleeper")["child"][0]
    shutil.rmtree(root)
    time.sleep(1.2)  # the supervisor looks at its log once a second, and must bear its absence
    assert runs(child)
    assert len(runtime.remove()) == 2
    assert not runs(child)


SEMAPHORE = """
import multiprocessing
lock = multiprocessing.get_context("spawn").Lock()
print(lock._semlock.name, flush=True)
input()
"""


def test_remove_deletes_semaphores_of_what_it_kills_and_no_others(
    runtime: NativeRuntime, root: Path
) -> None:
    holding = [sys.executable, "-c", SEMAPHORE]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        theirs = Path(f"/dev/shm/sem.{other.stdout.readline().decode().strip(chr(10) + '/')}")
        hang = SEMAPHORE.replace("input()", "import os, signal; os.killpg(0, signal.SIGSTOP)")
        start(runtime, Process("sleeper", (sys.executable, "-c", hang)))
        log = root / "roles/sleeper/log"
        assert eventually(lambda: log.read_text().endswith("\n"))
        ours = Path(f"/dev/shm/sem.{log.read_text().strip(chr(10) + '/')}")
        assert (theirs.exists(), ours.exists()) == (True, True)
        trap = Path(f"/dev/shm/sem.mp-~{ours.name}")
        trap.symlink_to(ours)  # as any user may
        runtime.remove()
        assert (theirs.exists(), ours.exists(), trap.is_symlink()) == (True, False, True)
        trap.unlink()
        other.communicate(b"\n", timeout=20)


def test_a_temporary_folder_of_somebody_else_is_not_used(
    runtime: NativeRuntime, root: Path, tmp_path: Path
) -> None:
    trap = Path(_temp(root))
    trap.symlink_to(tmp_path)
    try:
        start(runtime, SLEEPER)
        other = Path(_temp(root))
        assert other != trap
        assert (other.stat().st_mode & 0o7777, other.stat().st_uid) == (0o700, os.geteuid())
        start(runtime, Process("second", ("sleep", "1000")))
        assert Path(_temp(root)) == other
        assert f"folder {other}" in runtime.remove()
        assert trap.is_symlink()
        assert not other.exists()
    finally:
        trap.unlink()


def test_a_node_that_lost_its_temporary_folder_to_somebody_gets_another(
    runtime: NativeRuntime, root: Path, tmp_path: Path
) -> None:
    """As after a reboot, which empties /tmp: the names of before are known."""
    traps = [Path(_temp(root))]
    traps[0].symlink_to(tmp_path)
    try:
        start(runtime, SLEEPER)
        traps.append(Path(_temp(root)))
        runtime.inside(SLEEPER.role).run(("rm", "-r", str(traps[1])))
        traps[1].symlink_to(tmp_path)
        start(runtime, SLEEPER)
        assert Path(_temp(root)) not in traps
        runtime.remove()
    finally:
        for trap in traps:
            trap.unlink()


def test_old_sessions_of_ray_are_deleted(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, SLEEPER)
    for number in range(5):
        session = Path(_temp(root)) / f"ray/session_{number}"
        session.mkdir(parents=True)
        os.utime(session, (number, number))
    start(runtime, SLEEPER)
    left = sorted(each.name for each in (Path(_temp(root)) / "ray").iterdir())
    assert left == ["session_2", "session_3", "session_4"]


def test_remove_one_role_leaves_the_others(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, Process("one", ("sleep", "1000")), a=b"", both=b"")
    start(runtime, Process("two", ("sleep", "1000")), both=b"")
    assert runtime.remove("one") == ("process one",)
    assert only(runtime).health == "running"
    assert not (root / "a").exists()
    assert (root / "both").exists()
    assert runtime.remove("one") == ()


def test_a_process_that_ignores_term_is_killed(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, shell("deaf", "trap '' TERM; while :; do sleep 1; done"))
    child = state(root, "deaf")["child"][0]
    runtime.remove("deaf")
    assert not runs(child)


def test_a_program_that_is_not_there(runtime: NativeRuntime) -> None:
    with pytest.raises(HostError, match="box: cannot start no-such: No such file or directory"):
        start(runtime, Process("x", ("no-such",)))


def test_volumes_are_refused_unless_they_change_nothing(runtime: NativeRuntime) -> None:
    same = Volume("/data", "/data")
    start(runtime, Process("ok", ("sleep", "1000"), volumes=(same,)))
    moved = Process("no", ("sleep", "1000"), volumes=(same, Volume("/data", "/models")))
    with pytest.raises(RuntimeUnavailableError, match="/data:/models needs the docker runtime"):
        start(runtime, moved)


def test_inside_shares_environment_folder_and_files(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, Process("p", ("sleep", "1000"), {"WORD": "x y"}), note=b"hello")
    within = runtime.inside("p")
    assert within.run(("sh", "-c", 'cat note; printf " %s %s" "$WORD" "$1"', "", "a b")).text == (
        "hello x y a b"
    )
    within.put("more/file", b"1", mode=0o600)
    assert (root / "more/file").read_bytes() == b"1"
    with pytest.raises(HostError, match="nothing was started here as q"):
        runtime.inside("q")


def test_logs_follow_across_restarts(runtime: NativeRuntime, root: Path) -> None:
    start(runtime, shell("p", 'echo "begin $$"; sleep 1000'))
    output = runtime.logs("p", follow=True, tail=None, since=None)
    assert next(filter(None, output)).startswith(b"begin ")
    os.kill(state(root, "p")["child"][0], signal.SIGKILL)
    assert next(filter(None, output)).startswith(b"begin ")
    output.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tail", "since", "expected"),
    [
        (None, None, b"1\n2\n3\n"),
        (2, None, b"2\n3\n"),
        (0, None, b""),
        (None, 1000.0, b"1\n2\n3\n"),
    ],
)
def test_logs(
    runtime: NativeRuntime, tail: int | None, since: float | None, expected: bytes
) -> None:
    start(runtime, shell("p", "echo 1; echo 2; echo 3; sleep 1000"))
    assert eventually(lambda: b"3" in b"".join(_logs(runtime, "p")))
    assert b"".join(runtime.logs("p", follow=False, tail=tail, since=since)) == expected


def test_prepare_tells_what_a_given_python_holds(runtime: NativeRuntime) -> None:
    versions = runtime.prepare(SLEEPER, lambda _: None)
    assert versions.python == ".".join(str(part) for part in sys.version_info[:3])


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/bin/python", "/no/bin/python does not exist"),
        ("/bin/false", "/bin/false does not run"),
    ],
)
def test_prepare_with_a_python_that_is_of_no_use(root: Path, python: str, message: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"box: {message}"):
        _runtime(root, python).prepare(SLEEPER, lambda _: None)


def test_an_unwritable_root() -> None:
    runtime = NativeRuntime("box", "demo", LocalTransport("box"), root="/proc/no")
    with pytest.raises(
        RuntimeUnavailableError, match="box: cannot write to /proc/no: No such file"
    ):
        runtime.prepare(SLEEPER, lambda _: None)


def _logs(runtime: NativeRuntime, role: str) -> list[bytes]:
    return list(runtime.logs(role, follow=False, tail=None, since=None))


def _temp(root: Path) -> str:
    from raycluster.hosts.runtimes.native_place import place

    return str(place({"cluster": "demo", "root": str(root)}).temp)
