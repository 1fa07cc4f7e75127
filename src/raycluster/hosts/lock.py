"""One run at a time changes a cluster: claims on the head's host, alive while their owners beat.

A claim is a folder of a random name in /tmp, in which its owner alone may write. Only the host's
clock since boot tells whether a beat has stopped.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError, LockedError
from raycluster.core.interfaces import Completed, Tell, Transport

BEAT_TIMEOUT_S = 3.0
PATIENCE_S = 60.0
"""For all others to withdraw or to be given up; much longer than any of them needs."""
DOCKER_SOCKET = "/var/run/docker.sock"
MOST_CLAIMS = 100
_HEX = 32  # digits at the end of a claim's name

_GONE, _LATE = 3, 4
# Seconds since the host's boot, which nobody sets; a clock of another boot says nothing.
_NOW = r"""
read -r now _ </proc/uptime; now=${now%.*}; read -r boot </proc/sys/kernel/random/boot_id
"""
TMP_IS_SAFE = r"""[ -n "$(find /tmp/ -maxdepth 0 \( -user 0 -o -user "$(id -u)" \) \
    \( -perm -1000 -o ! -perm -0002 ! -perm -0020 \))" ]"""
"""A shell's condition: nobody else can rename what is in /tmp."""
# A whole folder is renamed into place: a claim without its beat is never seen.
_CLAIM = (
    _NOW
    + f"""
umask 022
if ! {TMP_IS_SAFE}; then"""
    + r"""
  echo "others may rename what is in /tmp" >&2; exit 1
fi
mkdir "$1.new" || exit 1
head -c 500 >"$1.new/holder" && echo "$boot $now waiting" >"$1.new/beat" &&
  mv -T "$1.new" "$1" && exit
rm -rf "$1.new"; exit 1
"""
)
_BEAT = (
    _NOW
    + r"""
cd "$1" 2>/dev/null && read -r then when _ <beat || exit 3
[ "$then" = "$boot" ] && [ $((now - when)) -le "$2" ] || exit 4
echo "$boot $now $3" >beat.new && mv -f beat.new beat && exit
[ -d "$1" ] && exit 1
exit 3
"""
)
# Whose claims count: this user's, root's, and those of users who may use Docker, where this one may
# too. What others lay there is never opened, and `find -type d` follows no link.
_LOOK = (
    _NOW
    + r"""
users="0 $(id -u)"
if [ -w "$4" ]; then
  users="$users $(stat -L -c %u "$4")"
  for name in $(getent group "$(stat -L -c %g "$4")" | cut -d: -f4 | tr , ' '); do
    users="$users $(id -u "$name" 2>/dev/null)"
  done
fi
own=$1 stem=$2 limit=$3; set --
for user in $users; do set -- "$@" -o -user "$user"; done; shift
find /tmp/ -maxdepth 1 -type d -name "$stem.*" \( "$@" \) | head -n 1000 |
while read -r claim; do
  case ${claim#/tmp/"$stem".} in *[!0-9a-f]*) continue;; esac
  [ "$claim" = "$own" ] && continue
  then='' when='' state='' text=''
  [ -L "$claim/beat" ] || [ ! -f "$claim/beat" ] || read -r then when state <"$claim/beat"
  case $when in ''|*[!0-9]*|?????????????*) then='';; esac
  if [ "$then" = "$boot" ] && [ $((now - when)) -le "$limit" ]; then
    [ -L "$claim/holder" ] || [ ! -f "$claim/holder" ] ||
      text=$(head -c 500 "$claim/holder" | tr -d '\n')
    printf 'claim %s %s %s %s\n' "${claim##*.}" "$when" "$state" "$text"
  else
    rm -rf "$claim" 2>/dev/null
  fi
done
"""
)
_WITHDRAW = 'rm -rf "$1"'
_SEEN = re.compile(rf"claim ([0-9a-f]{{{_HEX}}}) ([0-9]{{1,12}}) (waiting|held) ?(.*)")


@dataclass(frozen=True)
class LockTimes:
    """Seconds: between beats, until a silent holder stops by itself, and until others follow it.

    The host counts whole ones; `abandoned` is longer than `silent` by what one command may take.
    """

    beat: float = 1.0
    silent: int = 10
    abandoned: int = 15


@dataclass(frozen=True)
class Claim:
    """Another run's claim that is not abandoned; `who` is for people."""

    ident: str
    beat: int
    held: bool
    who: str


class Lock:
    """The lock of a cluster, held between enter and exit; a lease for what is done meanwhile.

    `who` describes this run to others. `wake` is called when another thread than the main one
    finds that the lock is lost while it is held. A run goes on only after it saw no other claim
    beside its own: of two, one at least sees the other's.
    """

    def __init__(
        self,
        transport: Transport,
        cluster: str,
        who: str,
        *,
        wake: Callable[[], None] = lambda: None,
        tell: Tell = lambda _: None,
        pace: LockTimes = LockTimes(),
        docker: str = "",
    ) -> None:
        self.lost: LockedError | None = None
        self._transport = transport
        self._cluster = cluster
        self._who = who
        self._wake = wake
        self._tell = tell
        self._pace = pace
        self._docker = docker or DOCKER_SOCKET
        self._ident = secrets.token_hex(_HEX // 2)
        self._stem = f"raycluster-{cluster}.lock"
        self._claim = f"/tmp/{self._stem}.{self._ident}"  # noqa: S108  # random, 0755, never followed
        self._state = "waiting"
        self._good = 0.0
        self._trouble = ""
        self._over = threading.Event()
        self._beating = threading.Lock()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        """Take the lock. Raises LockedError with its holder, and HostError."""
        try:
            self._make_claim()
            self._thread.start()
            self._wait_for_turn()
            self._state = "held"
            self.check()
        except BaseException:
            self._withdraw()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._judge()  # a connection that broke while the run stood still is not the cause
        self._withdraw()

    def _make_claim(self) -> None:
        began = _clock()
        done = self._run(_CLAIM, self._claim, input=self._who.encode())
        if done.exit_code != 0:
            raise HostError(
                f"the lock {self._claim} cannot be created: {_said(done)}",
                where=self._cluster,
                hint="let root own /tmp, with mode 1777, and free some space: ls -ld /tmp; "
                "df /tmp; df -i /tmp",
            )
        self._good = began

    def check(self) -> None:
        """Beat now: whoever comes after that knows this run as alive. Raises LockedError."""
        self._renew()
        self.valid()

    def valid(self) -> None:
        """Raise LockedError where this run holds the lock no longer, or may not; asks nobody."""
        self._judge()
        if self.lost is not None:
            raise self.lost
        if self._over.is_set():  # a thread that the end of the run has left behind
            raise LockedError("this run has ended", where=self._cluster)

    def _withdraw(self) -> None:
        with self._changing:
            self._over.set()
        with contextlib.suppress(HostError), self._beating:  # no connection, and so no beat
            self._run(_WITHDRAW, self._claim)

    def _wait_for_turn(self) -> None:
        """Return when there is no other claim; raise LockedError when another goes first.

        Of runs that wait, the one whose name is the first does: it waits for the others' leave.
        """
        first: dict[str, int] = {}
        told: set[str] = set()
        end = _clock() + PATIENCE_S
        while others := self._others():
            for other in others:
                beats = first.setdefault(other.ident, other.beat) != other.beat
                goes_first = other.held or other.ident < self._ident
                if (beats and goes_first) or _clock() > end:
                    raise LockedError(
                        f"is being changed by {other.who}",
                        where=self._cluster,
                        hint="wait until it has finished",
                    )
                if other.held and other.ident not in told:
                    told.add(other.ident)
                    self._tell(f"waiting for {other.who} to respond")
            self.valid()
            time.sleep(self._pace.beat / 2)

    def _others(self) -> tuple[Claim, ...]:
        """Return the other claims, and remove those that are abandoned. Raises HostError."""
        limit = str(self._pace.abandoned)
        done = self._run(_LOOK, self._claim, self._stem, limit, self._docker)
        if done.exit_code != 0:
            raise HostError(f"cannot check for other runs: {_said(done)}", where=self._cluster)
        found = [seen for line in done.text.splitlines() if (seen := _SEEN.fullmatch(line))]
        return tuple(
            Claim(ident, int(beat), state == "held", clean(who) or "another run")
            for ident, beat, state, who in (seen.groups() for seen in found[:MOST_CLAIMS])
        )

    def _beat(self) -> None:
        while self.lost is None and not self._over.wait(self._pace.beat):
            self._renew()

    def _renew(self) -> None:
        """Beat once; the lock is lost where others may follow, or may have followed."""
        with self._beating:
            self._judge()
            if self.lost is not None or self._over.is_set():
                return
            begun, limit = _clock(), str(self._pace.silent)
            try:
                done = self._run(_BEAT, self._claim, limit, self._state, timeout=BEAT_TIMEOUT_S)
                self._trouble = _said(done) if done.exit_code else ""
            except HostError as error:
                done, self._trouble = Completed(1), error.what
            if done.exit_code == 0:
                self._good = begun
            elif done.exit_code in (_GONE, _LATE):
                self._lose("another run may have taken the lock while this one was suspended")
            else:
                self._judge()

    def _judge(self) -> None:
        """Give the lock up after too long without a beat: others may soon follow."""
        if (still := _clock() - self._good) > self._pace.silent:
            self._lose(
                f"this run could not renew its lock: {self._trouble}"
                if self._trouble
                else f"this run was suspended for {still:.0f} s"
            )

    def _lose(self, why: str) -> None:
        with self._changing:
            if self._over.is_set() or self.lost is not None:
                return
            self.lost = LockedError(
                f"{why}; it has stopped and changes nothing more",
                where=self._cluster,
                hint="check the state with `raycluster plan`, then run the command again",
            )
        if self._state == "held" and threading.current_thread() is not threading.main_thread():
            self._wake()  # who runs there now is told by an error

    def _run(self, script: str, *args: str, input: bytes = b"", timeout: float = 60.0) -> Completed:
        argv = ("sh", "-c", script, "sh", *args)
        return self._transport.run(argv, input=input, timeout=timeout)


def _said(done: Completed) -> str:
    return clean(done.error_text) or f"sh ended with {done.exit_code}"


def _clock() -> float:
    """Return seconds that go on while the machine sleeps, where the system counts these."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextmanager
def holding(
    transport: Transport,
    cluster: str,
    command: str,
    tell: Tell = lambda _: None,
    docker: str = "",
) -> Iterator[Lock]:
    """Hold the cluster's lock for this process. Raises LockedError, also when it is lost midway.

    `docker` is the socket whose users may change the cluster as well.
    `transport` should be a connection of its own: beats must not wait for what the run does.
    """
    with _waking() as wake:
        lock = Lock(transport, cluster, _this_run(command), wake=wake, tell=tell, docker=docker)
        try:
            with lock:
                yield lock
        except BaseException:
            if lock.lost:
                raise lock.lost from None
            raise
        if lock.lost:
            raise lock.lost


@contextmanager
def _waking() -> Iterator[Callable[[], None]]:
    """Yield what raises KeyboardInterrupt in the main thread, whatever it waits for.

    Not by SIGINT: a job in the background of a script ignores that.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield lambda: None  # there the next command to a host raises
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield lambda: signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


def _this_run(command: str) -> str:
    user, machine = "somebody", socket.gethostname()
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        user = getpass.getuser()
    since = time.strftime("since %H:%M:%S")
    return f"`{command}` of {user}@{machine} (process {os.getpid()}, {since})"
