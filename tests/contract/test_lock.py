"""The lock of a cluster, on a real host: this machine."""

from __future__ import annotations

import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from raycluster.core.errors import HostError, LockedError
from raycluster.core.interfaces import Completed
from raycluster.hosts import lock as module
from raycluster.hosts.lock import Lock, LockTimes, holding
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.sshd import wait_for

QUICK = LockTimes(0.2, 5, 8)
NOBODY = 65534
FIRST, LAST = "0" * 32, "f" * 32  # names of claims: the first one's run goes first
SECRET = "what only its owner may read"

HOLD = """
import signal, sys
from raycluster.hosts.lock import holding
from raycluster.hosts.transports.local import LocalTransport
with holding(LocalTransport("here"), sys.argv[1], "raycluster up"):
    print("held", flush=True)
    sys.stdin.read()
"""
# What a job in the background of a script does: SIGINT is ignored, and threads work on hosts.
WORK = """
import signal, sys, time
from raycluster import cli
from raycluster.hosts import fleet as connect, lock
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.lock import Lock, LockTimes
from raycluster.spec import ClusterSpec

signal.signal(signal.SIGINT, signal.SIG_IGN)
name, file = sys.argv[1:]
Lock.__init__.__kwdefaults__["pace"] = LockTimes(0.2, 5, 8)
[host] = ClusterSpec(**{"cluster": {"name": name}, "head": {"transport": "local"}}).hosts

def work(connected):
    while True:
        connected.transport.run(("sh", "-c", 'echo changed >>"$0"', file))

def command():
    with Fleet(name, 2) as fleet:
        fleet.open(host)
        with lock.holding(fleet.new_connection("head"), name, "raycluster up") as lease:
            with fleet.under(lease):
                print("held", flush=True)
                fleet.each(["head"], work)

cli.app = lambda standalone_mode: command()
sys.argv = ["raycluster"]
cli.main()
"""


@pytest.fixture
def cluster() -> Iterator[str]:
    """A name of its own; no lock of it is left."""
    name = f"lock-{uuid.uuid4().hex[:8]}"
    yield name
    assert claims(name) == []


@pytest.fixture
def here() -> Iterator[LocalTransport]:
    """This machine."""
    transport = LocalTransport("here")
    yield transport
    transport.close()


def claims(cluster: str) -> list[Path]:
    return sorted(Path("/tmp").glob(f"raycluster-{cluster}.lock*"))


def uptime() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def beat(folder: Path, state: str = "held", age: int = 0) -> None:
    """Write a beat as a run does."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (folder / "beat.new").write_text(f"{boot} {uptime() - age} {state}\n")
    (folder / "beat.new").replace(folder / "beat")


def claim(cluster: str, ident: str, who: str = "somebody", age: int = 0) -> Path:
    """Lay a claim there as another run does."""
    folder = Path(f"/tmp/raycluster-{cluster}.lock.{ident}")
    folder.mkdir()
    (folder / "holder").write_text(who)
    beat(folder, age=age)
    return folder


@contextmanager
def beating(folder: Path, state: str = "held") -> Iterator[None]:
    """Let a claim beat meanwhile, and remove it then."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.1):
            beat(folder, state)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        rmtree(folder)


@contextmanager
def other(cluster: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock until its standard input ends."""
    argv = [sys.executable, "-c", HOLD, cluster]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate(timeout=20)


def refused(here: LocalTransport, cluster: str, pattern: str) -> None:
    """Assert that a run is refused, with these words."""
    with (
        pytest.raises(LockedError, match=pattern),
        Lock(here, cluster, "me", pace=QUICK),
    ):
        pytest.fail("both hold it")


def test_taken_one_after_the_other(here: LocalTransport, cluster: str) -> None:
    for _ in range(2):
        with holding(here, cluster, "raycluster up"):
            [folder] = claims(cluster)
            assert folder.stat().st_mode & 0o7777 == 0o755
            assert folder.stat().st_uid == os.geteuid()
        assert claims(cluster) == []


def test_the_loser_is_told_who_holds_it(here: LocalTransport, cluster: str) -> None:
    with other(cluster) as process:
        refused(here, cluster, rf"is being changed by `raycluster up` of .*process {process.pid}")
        assert len(claims(cluster)) == 1


@pytest.mark.parametrize("ident", [FIRST, LAST])
def test_a_living_holder_of_the_same_host_name_keeps_it(
    here: LocalTransport, cluster: str, ident: str
) -> None:
    """Another machine may have this one's name, and no process of that number."""
    gone = f"`raycluster up` of root@{socket.gethostname()} (process 4194305, since 00:00:00)"
    with beating(claim(cluster, ident, gone)):
        refused(here, cluster, re.escape(gone))


@pytest.mark.parametrize(("ident", "goes_first"), [(FIRST, True), (LAST, False)])
def test_of_two_that_wait_one_goes_first(
    here: LocalTransport, cluster: str, ident: str, goes_first: bool
) -> None:
    folder = claim(cluster, ident)
    beat(folder, "waiting")
    if goes_first:
        with beating(folder, "waiting"):
            refused(here, cluster, "is being changed by somebody")
        return
    told = list[str]()
    leaves = beating(folder, "waiting")
    leaves.__enter__()
    looked = Watched(lambda argv: len(argv) == 8 and leaves.__exit__(None, None, None))
    with Lock(looked, cluster, "me", pace=QUICK, tell=told.append):
        assert not folder.exists()


@pytest.mark.parametrize("age", [QUICK.abandoned + 1, 10**9, -(10**9)], ids=str)
def test_a_holder_whose_beat_has_stopped_is_followed(
    here: LocalTransport, cluster: str, age: int
) -> None:
    """Judged by the host's clock since boot; a beat of another boot has stopped as well."""
    folder = claim(cluster, FIRST, age=age if age > 0 else 0)
    if age < 0:
        (folder / "beat").write_text(f"another-boot {uptime()} held\n")
    with Lock(here, cluster, "me", pace=QUICK):
        assert not folder.exists()


def test_a_killed_holder_is_followed_when_its_beat_has_stopped(
    here: LocalTransport, cluster: str
) -> None:
    told = list[str]()
    with other(cluster) as process:
        [folder] = claims(cluster)
        process.kill()
        process.wait()
        last = int((folder / "beat").read_text().split()[1])
        with Lock(here, cluster, "me", pace=QUICK, tell=told.append):
            assert not folder.exists()
            assert uptime() - last >= QUICK.abandoned
    [line] = told
    assert f"(process {process.pid}, " in line


def test_a_paused_holder_begins_nothing_more(
    here: LocalTransport, cluster: str, tmp_path: Path
) -> None:
    file = tmp_path / "changes"
    argv = [sys.executable, "-c", WORK, cluster, str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(file.exists, "the first change")
        process.send_signal(signal.SIGSTOP)
        with Lock(here, cluster, "me", pace=QUICK) as lease:
            before = file.read_text()
            process.send_signal(signal.SIGCONT)
            _, said = process.communicate(timeout=60)
            after = file.read_text().removeprefix(before)
            assert after in ("", "changed\n"), "more than the one command that was on its way"
            lease.check()
    assert process.returncode == 5, said
    assert re.fullmatch(
        rf"error: {cluster}: this run was suspended for \d+ s; "
        r"it has stopped and changes nothing more\n  next: .*\n",
        said,
    )


def test_a_holder_whose_claim_is_gone_ends(cluster: str, tmp_path: Path) -> None:
    file = tmp_path / "changes"
    argv = [sys.executable, "-c", WORK, cluster, str(file)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        wait_for(file.exists, "the first change")
        rmtree(claims(cluster)[0])
        _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert "another run may have taken the lock" in said


def test_a_check_finds_a_lost_lock_at_once(here: LocalTransport, cluster: str) -> None:
    with Lock(here, cluster, "me", pace=LockTimes(beat=1000)) as lease:
        lease.check()
        rmtree(claims(cluster)[0])
        lease.valid()  # nobody has been asked
        with pytest.raises(LockedError, match="another run may have taken the lock"):
            lease.check()
        with pytest.raises(LockedError):
            lease.valid()


def test_a_beat_comes_too_late_by_the_hosts_clock(here: LocalTransport, cluster: str) -> None:
    with Lock(here, cluster, "me", pace=LockTimes(beat=1000)) as lease:
        beat(claims(cluster)[0], age=LockTimes().silent + 1)
        with pytest.raises(LockedError, match="another run may have taken the lock"):
            lease.check()


@pytest.fixture
def _hangups_count() -> Iterator[None]:
    """Who starts the tests may ignore hangups, as `nohup` does, and so would what they start."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("_hangups_count")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_in_the_background_ends_on_request(
    cluster: str, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGINT is ignored there; nothing of it is left."""
    file = tmp_path / "changes"
    argv = [sys.executable, "-c", WORK, cluster, str(file)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        wait_for(file.exists, "the first change")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


class Watched(LocalTransport):
    """This machine; `seen` is called with what runs there."""

    def __init__(self, seen: Callable[[Sequence[str]], object]) -> None:
        super().__init__("here")
        self.seen = seen

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run, and tell."""
        done = super().run(argv, **options)
        self.seen(argv)
        return done


def test_what_a_file_says_is_in_no_command_line(cluster: str) -> None:
    """Every local user can read these."""
    lines = list[Sequence[str]]()
    folder = claim(cluster, FIRST, SECRET)
    with beating(folder):
        refused(Watched(lines.append), cluster, SECRET)
    with Lock(Watched(lines.append), cluster, SECRET, pace=QUICK):
        pass
    assert SECRET not in str(lines)


def lays_links(cluster: str, tmp_path: Path) -> list[Path]:
    """Lay links there whose targets look like a claim that lives, or that has been given up."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "holder").write_text(SECRET)
    beat(target)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    made = [Path(f"/tmp/raycluster-{cluster}.lock.{n * 32}") for n in "0f"]
    made[0].symlink_to(target)
    made[1].symlink_to(stopped)
    return made


def lays_fifos(cluster: str, _tmp_path: Path) -> list[Path]:
    """Lay things there that whoever opens them waits for."""
    made = [Path(f"/tmp/raycluster-{cluster}.lock{rest}") for rest in ("", f".{FIRST}")]
    for path in made:
        os.mkfifo(path)
    return made


def lays_claims(cluster: str, _tmp_path: Path) -> list[Path]:
    """Lay another user's claims there, one of which beats, and that user's fifos in one."""
    made = [claim(cluster, FIRST), claim(cluster, "1" * 32), claim(cluster, LAST)]
    (made[1] / "beat").unlink()
    os.mkfifo(made[1] / "beat")
    for folder in made:
        os.chown(folder, NOBODY, NOBODY)
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lay there what is another user's")
@pytest.mark.parametrize("lays", [lays_links, lays_fifos, lays_claims])
def test_what_another_user_lays_there_stops_nobody(
    here: LocalTransport,
    cluster: str,
    tmp_path: Path,
    lays: Callable[[str, Path], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DOCKER_SOCKET", str(tmp_path / "none"))
    laid = lays(cluster, tmp_path)
    for path in laid:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    with Lock(here, cluster, "me", pace=QUICK) as lease:
        lease.check()
        assert {*claims(cluster)} > {*laid}
    assert (tmp_path / "stopped").exists() == (lays is lays_links)
    for path in laid:
        rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is another user's")
def test_the_claims_of_users_who_may_use_docker_count(
    here: LocalTransport, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker.sock"
    docker.touch()
    os.chown(docker, NOBODY, NOBODY)
    monkeypatch.setattr(module, "DOCKER_SOCKET", str(docker))
    folder = claim(cluster, LAST)
    os.chown(folder, NOBODY, NOBODY)
    with beating(folder):
        refused(here, cluster, "is being changed by somebody")


def test_a_link_in_a_claim_is_not_read(here: LocalTransport, cluster: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    folder = claim(cluster, FIRST)
    (folder / "holder").unlink()
    (folder / "holder").symlink_to(tmp_path / "secret")
    with beating(folder):
        refused(here, cluster, r"is being changed by another run\n")


class OtherTmp(LocalTransport):
    """This machine, with another /tmp."""

    def __init__(self, options: str) -> None:
        super().__init__("here")
        mount = f'mount -t tmpfs -o {options} none /tmp && exec "$@"'
        self.prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run there."""
        return super().run((*self.prefix, *argv), **options)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("options", ["mode=0777", "mode=0775", f"mode=1777,uid={NOBODY}"])
def test_a_folder_in_which_others_may_rename_is_refused(cluster: str, options: str) -> None:
    with (
        pytest.raises(HostError, match="others may rename what is in /tmp") as caught,
        Lock(OtherTmp(options), cluster, "me"),
    ):
        pytest.fail("it was taken")
    assert "mode 1777" in caught.value.hint


def together(count: int, contend: Callable[[], None]) -> list[threading.Thread]:
    """Start so many threads at once."""
    barrier = threading.Barrier(count)

    def begin() -> None:
        barrier.wait()
        contend()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("dead", [0, 0, 0, 2, 2, 2])
def test_only_one_of_many_gets_it(cluster: str, dead: int) -> None:
    """With and without claims of runs that were killed."""
    for _ in range(dead):
        claim(cluster, secrets.token_hex(16), age=LockTimes().abandoned + 1)
    inside: list[int] = []
    ended = threading.Semaphore(0)
    over = threading.Event()

    def contend() -> None:
        with (
            suppress(LockedError),
            Lock(LocalTransport("here"), cluster, "one of many", pace=LockTimes(0.3)),
        ):
            inside.append(1)
            over.wait(60)
        ended.release()

    threads = together(6, contend)
    for _ in range(5):
        assert ended.acquire(timeout=60)
    over.set()
    for thread in threads:
        thread.join(60)
    assert inside == [1]


class Broken(LocalTransport):
    """This machine, over a connection that carries nothing while `down` is set."""

    def __init__(self) -> None:
        super().__init__("here")
        self.down = threading.Event()
        self.met = threading.Semaphore(0)

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run, or raise what a broken connection raises."""
        if self.down.is_set():
            self.met.release()
            raise HostError("sshd did not open a session", where="here")
        return super().run(argv, **options)


def test_the_beat_goes_on_after_it_failed(cluster: str) -> None:
    transport = Broken()
    with Lock(transport, cluster, "me", pace=LockTimes(0.2)) as lease:
        transport.down.set()
        assert transport.met.acquire(timeout=20)
        lease.check()  # one that fails is not yet the end
        [folder] = claims(cluster)
        before = (folder / "beat").stat().st_ino
        transport.down.clear()
        wait_for(lambda: (folder / "beat").stat().st_ino != before, "it beats again")
    assert lease.lost is None


def test_a_holder_that_cannot_beat_ends_before_others_may_follow(cluster: str) -> None:
    transport, woken = Broken(), queue.SimpleQueue[int]()
    wake = lambda: woken.put(uptime())  # noqa: E731
    with Lock(transport, cluster, "me", pace=QUICK, wake=wake) as lease:
        [folder] = claims(cluster)
        transport.down.set()
        when = woken.get(timeout=60)
        last = int((folder / "beat").read_text().split()[1])
        transport.down.clear()
    assert when - last < QUICK.abandoned
    assert "could not renew its lock: sshd did not open a session" in str(lease.lost)
