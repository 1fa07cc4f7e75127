"""Travels to hosts of the native runtime and keeps one process alive there.

    supervisor.py FOLDER        detach, then keep running what FOLDER/launch.json describes
    supervisor.py --here FOLDER the same without detaching: what systemd runs
    supervisor.py --all ROOT    the same for every role under ROOT that should run and does not:
                                what cron runs after a reboot and every minute

Standard library alone, Python 3.8. What runs, or ran last, is told by FOLDER/state.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from raycluster.core.last_words import last_words
from raycluster.hosts.runtimes.native_place import STOPPED, Place, ProblemError
from raycluster.hosts.runtimes.native_processes import alive, boot_id, end, start_time

SCHEMA = 1
STOP_GRACE, REST_GRACE = 10.0, 2.0  # seconds after TERM: to the child, to what it leaves
FIRST_DELAY, LAST_DELAY, STEADY = 1.0, 30.0, 60.0  # seconds; STEADY running forgives old crashes
LOG_BYTES, LOG_FILES, LOG_CHECK = 50_000_000, 3, 1.0
KEPT_SESSIONS = 3
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOPS = (signal.SIGTERM, signal.SIGINT)
WATCHED = (*STOPS, signal.SIGCHLD)


class Log:
    """The child's output: a file, and beside it `log.times` that tells its size at times."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.times = file.with_name("log.times")
        self.marked = -1

    def tend(self) -> None:
        """Note how long the log is now, and move it aside when it is large."""
        with contextlib.suppress(OSError):  # a full disk must not end what serves
            self._tend()

    def _tend(self) -> None:
        size = self.file.stat().st_size
        if size != self.marked:
            with self.times.open("a") as times:
                times.write(f"{time.time():.1f} {size}\n")
            self.marked = size
        if size >= LOG_BYTES:
            self._rotate()

    def _rotate(self) -> None:
        """Copy and truncate, as the child holds the file open; what it writes meanwhile is lost."""
        for number in range(LOG_FILES - 1, 1, -1):
            older = self.file.with_name(f"log.{number - 1}")
            if older.exists():
                older.replace(self.file.with_name(f"log.{number}"))
        shutil.copyfile(self.file, self.file.with_name("log.1"))
        os.truncate(self.file, 0)
        self.times.write_text("")
        self.marked = 0

    def last_words(self) -> str:
        """Return the last words, for whoever asks why the child ended."""
        try:
            with self.file.open("rb") as log:
                log.seek(max(0, self.file.stat().st_size - 4000))
                return last_words(log.read().decode("utf-8", "replace"))
        except OSError:
            return ""


class Supervisor:
    """Restarts a child after each exit, until TERM; owns everything that descends from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launch = json.loads((folder / "launch.json").read_text())
        self.restarts = 0
        self.detail = ""
        self.session: list[int] | None = None

    def clear(self) -> None:
        """End what a supervisor that was killed has left. Raises ProblemError."""
        root = self.folder.parent.parent
        owner, temp = self.launch["env"]["RAYCLUSTER_OWNER"], Path(self.launch["temp"])
        end(Place(root, owner, temp), self.folder.name, orphans=True)

    def keep(self) -> None:
        """Return after TERM, when no descendant is left."""
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            child = self._spawn()
            self._save(child)
            if child is None:
                stopped = False
            else:
                stopped = self._watch(child)
                self._sweep(child, stopped)
            self._save(None)
            if stopped:
                return
            if time.monotonic() - began >= STEADY:
                delay = FIRST_DELAY
            if signal.sigtimedwait(STOPS, delay) is not None:
                self._save(None)
                return
            delay = min(delay * 2, LAST_DELAY)
            self.restarts += 1

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        parent = os.getpid()

        def prepare() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
            if os.getppid() != parent:
                os._exit(1)

        try:
            make_private(Path(self.launch["temp"]))
            prune(Path(self.launch["temp"]))
            with (self.folder / "log").open("ab") as log:
                return subprocess.Popen(
                    self.launch["argv"],
                    env=self.launch["env"],
                    cwd=self.launch["temp"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=prepare,  # noqa: PLW1509 - this process has no threads
                )
        except OSError as error:
            self.detail = "cannot start {}: {}".format(self.launch["argv"][0], error.strerror)
            return None

    def _watch(self, child: subprocess.Popen[bytes]) -> bool:
        """Return True when a TERM came, or else False when the child has ended."""
        log = Log(self.folder / "log")
        while True:
            came = signal.sigtimedwait(WATCHED, LOG_CHECK)
            log.tend()
            if came is None:
                continue
            if came.si_signo in STOPS:
                return True
            status = _reap().get(child.pid)
            if status is not None:
                child.returncode = status
                self.detail = f"{_describe(status)}: {log.last_words()}".rstrip(": ")
                return False

    def _sweep(self, child: subprocess.Popen[bytes], stopped: bool) -> None:
        """End the child and whatever descends from this process: TERM, and KILL after a while.

        TERM goes to the child alone at first: `ray start --block` ends its processes in an order
        in which they can end, and hangs when all of them get it at once.
        """
        if stopped:
            child.terminate()
            _wait(lambda: child.pid not in descendants(os.getpid()), STOP_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        _wait(lambda: not descendants(os.getpid()), REST_GRACE)
        while True:
            left = descendants(os.getpid())
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            _reap()

    def _save(self, child: subprocess.Popen[bytes] | None) -> None:
        self.session = [child.pid, start_time(child.pid)] if child else self.session
        state = {
            "schema": SCHEMA,
            "boot": boot_id(),
            "supervisor": [os.getpid(), start_time(os.getpid())],
            "child": self.session if child else None,
            "session": self.session,
            "fingerprint": self.launch["fingerprint"],
            "versions": self.launch["versions"],
            "restarts": self.restarts,
            "detail": self.detail,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if child else "",
        }
        temporary = self.folder / "state.json.new"
        with contextlib.suppress(OSError):  # a full disk must not end what serves
            temporary.write_text(json.dumps(state))
            temporary.replace(self.folder / "state.json")


def descendants(ancestor: int) -> list[int]:
    """Return the living processes below `ancestor`; orphans among them too, as it adopts them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(folder.name)] = (int(parent), state)
    below: set[int] = {ancestor}
    grew = True
    while grew:
        more = {pid for pid, (parent, _) in parents.items() if parent in below} - below
        below |= more
        grew = bool(more)
    return [pid for pid in below if pid != ancestor and parents[pid][1] != "Z"]


def make_private(folder: Path) -> None:
    """Make a folder that only this user can enter, or raise OSError where another's stands."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, f"{folder} belongs to another user")
    folder.chmod(0o700)


def prune(temp: Path) -> None:
    """Delete Ray's older sessions: each start of a head makes one, and nothing else ends them."""
    sessions = [each for each in temp.glob("ray/session_[0-9]*") if not each.is_symlink()]
    sessions.sort(key=lambda each: each.stat().st_mtime)
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(str(session), ignore_errors=True)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _wait(done: Callable[[], bool], limit: float) -> None:
    patience = time.monotonic() + limit
    while not done() and time.monotonic() < patience:
        time.sleep(0.05)
        _reap()


def _reap() -> dict[int, int]:
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            killed = os.WIFSIGNALED(status)
            ended[pid] = -os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
    return ended


def _describe(status: int) -> str:
    return f"exited with status {status}" if status >= 0 else f"killed by signal {-status}"


def detach(folder: Path) -> None:
    """Start a supervisor that outlives this process, its session and its terminal."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    _become(folder)


def _become(folder: Path) -> NoReturn:
    """Begin anew with the environment by which all processes of the cluster are known."""
    try:
        env = json.loads((folder / "launch.json").read_text())["env"]
        log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except (OSError, ValueError):  # it is being removed
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 256)
    argv = [sys.executable, "-I", "-S", str(Path(sys.argv[0]).resolve()), "--keep", str(folder)]
    os.execve(sys.executable, argv, {**env, "RAYCLUSTER_SUPERVISOR": "1"})  # noqa: S606


def keep(folder: Path) -> None:
    """Be the one supervisor of a folder; return at once where there is another, or should be none.

    Whoever stops the role says so in a file first, and looks for processes then: this one is either
    seen there, or sees the file.
    """
    os.umask(0o077)
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        supervisor = Supervisor(folder)
    except (OSError, ValueError):  # there is another, or it is being removed
        return
    if (folder / STOPPED).exists():
        return
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        supervisor.clear()
    except ProblemError as problem:
        sys.exit(f"{problem.what}: {problem.hint}")
    supervisor.keep()


def shall_start(folder: Path) -> bool:
    """Tell whether a role was started, not stopped, and has no supervisor now."""
    if (folder / STOPPED).exists():
        return False
    try:
        state = json.loads((folder / "state.json").read_text())
        return state["boot"] != boot_id() or not alive(state["supervisor"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def main() -> None:
    if sys.argv[1] == "--keep":
        keep(Path(sys.argv[2]))
    elif sys.argv[1] == "--here":
        _become(Path(sys.argv[2]))
    elif sys.argv[1] == "--all":
        for found in sorted(Path(sys.argv[2]).glob("roles/*/launch.json")):
            if shall_start(found.parent):
                detach(found.parent)
    else:
        detach(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
