"""One run at a time changes a cluster: a lock on the head's host, alive while its holder beats.

No clocks are compared: a lock is abandoned when its beat did not change while another run looked.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType

from raycluster.contracts import Completed, Transport
from raycluster.errors import HostError, LockedError

BEAT_S = 1.0
BEAT_TIMEOUT_S = 3.0
SILENT_S = 10.0
"""A holder whose beats fail for so long stops: others may soon take it for dead."""
ABANDONED_S = 15.0
"""A lock whose beat stood still for so long is taken over."""

_HELD = 3
# a whole folder is renamed into place: a lock without a holder is never seen
_TAKE = """new="$1.$2"
if mkdir "$new" && printf %s "$3" >"$new/holder" && touch "$new/beat"; then
  mv -T "$new" "$1" 2>/dev/null && exit
  code=3
  if [ -e "$1" ] && [ ! -d "$1" ]; then echo "it is not a folder" >&2; code=1; fi
else
  code=1
fi
rm -rf "$new"; exit $code"""
_LOOK = 'cat "$1/holder" 2>/dev/null; echo; stat -c %y "$1/beat" 2>/dev/null; test -d "$1"'
_BEAT = 'grep -qF "$2" "$1/holder" 2>/dev/null && touch -c "$1/beat"'
# The kernel's lock is on the folder itself: of many who saw one holder, a single one moves it away.
_REMOVE = 'mv -T "$1" "$1.$2" && rm -rf "$1.$2"'
_BREAK = f'exec 9<"$1" && flock 9 && [ "$({_LOOK})" = "$3" ] && {_REMOVE}'
_FREE = f'exec 9<"$1" && flock 9 && grep -qF "$2" "$1/holder" && {_REMOVE}'


@dataclass(frozen=True)
class Holder:
    """Who holds a lock; `since` is for people, in the holder's own time."""

    ident: str
    user: str
    machine: str
    pid: int
    command: str
    since: str

    def describe(self) -> str:
        """Return who this is, in words."""
        return f"`{self.command}` of {self.user}@{self.machine} (process {self.pid}, {self.since})"


@dataclass(frozen=True)
class Seen:
    """A lock as it was found; `text` changes with every beat."""

    text: str
    holder: Holder | None


class Lock:
    """The lock of a cluster, held between enter and exit.

    `alive` tells whether the process of a holder on this machine still runs. `lost` is called from
    another thread, with what to raise, when this run holds the lock no longer, or soon may not.
    """

    def __init__(
        self,
        transport: Transport,
        cluster: str,
        holder: Holder,
        *,
        alive: Callable[[Holder], bool],
        lost: Callable[[LockedError], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._cluster = cluster
        self._path = f"/tmp/raycluster-{cluster}.lock"  # noqa: S108  # the rename makes it ours
        self._holder = holder
        self._alive = alive
        self._lost = lost
        self._sleep = sleep
        self._clock = clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        """Take the lock. Raises LockedError with its holder, and HostError."""
        while not self._taken():
            self._await_turn()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with contextlib.suppress(HostError):  # the connection is gone, and the beat with it
            self._run(_FREE, self._holder.ident)

    def _taken(self) -> bool:
        """Take the lock; return False where there is one. Raises HostError."""
        done = self._run(_TAKE, self._holder.ident, json.dumps(asdict(self._holder)))
        if done.exit_code in (0, _HELD):
            return done.exit_code == 0
        refusal = done.stderr.decode("utf-8", "replace").strip()
        raise HostError(f"the lock {self._path} cannot be made: {refusal}", where=self._cluster)

    def _await_turn(self) -> None:
        """Return when the lock is free or was removed; raise LockedError when its holder lives."""
        first = self._look()
        end = self._clock() + ABANDONED_S
        while first is not None and self._clock() < end:
            if first.holder and not self._alive(first.holder):
                break
            self._sleep(BEAT_S / 2)
            now = self._look()
            if now is None:
                return
            if now != first:
                who = now.holder.describe() if now.holder else "another run"
                raise LockedError(
                    f"is being changed by {who}",
                    where=self._cluster,
                    hint="wait until it has ended",
                )
        if first is not None:
            self._break(first)

    def _break(self, seen: Seen) -> None:
        """Remove the lock if it is still the one that was seen."""
        done = self._run(_BREAK, self._holder.ident, seen.text)
        if done.exit_code != 0 and self._look() == seen:
            refusal = done.stderr.decode("utf-8", "replace").strip()
            raise HostError(
                f"the abandoned lock {self._path} cannot be removed: {refusal}",
                where=self._cluster,
                hint="remove this folder on the head's host as its owner",
            )

    def _look(self) -> Seen | None:
        done = self._run(_LOOK)
        if done.exit_code != 0:
            return None
        try:
            return Seen(done.text, Holder(**json.loads(done.text.partition("\n")[0])))
        except (TypeError, ValueError):
            return Seen(done.text, None)

    def _beat(self) -> None:
        good = self._clock()
        while not self._over.wait(BEAT_S):
            begun = self._clock()
            try:
                done = self._run(_BEAT, self._holder.ident, timeout=BEAT_TIMEOUT_S)
            except HostError as error:
                if self._clock() - good > SILENT_S:
                    self._give_up(f"this run could not renew its lock: {error.what}")
                    return
                continue
            if done.exit_code != 0:
                self._give_up("was taken over by another run while this one stood still")
                return
            good = begun

    def _give_up(self, what: str) -> None:
        if not self._over.is_set():
            self._lost(LockedError(what, where=self._cluster, hint="run the command again"))

    def _run(self, script: str, *args: str, timeout: float = 60.0) -> Completed:
        argv = ("sh", "-c", script, "sh", self._path, *args)
        return self._transport.run(argv, timeout=timeout)


@contextmanager
def holding(transport: Transport, cluster: str, command: str) -> Iterator[None]:
    """Hold the cluster's lock for this process. Raises LockedError, also when it is lost midway.

    `transport` should be a connection of its own: beats shall not wait for what the run does.
    """
    lost: list[LockedError] = []

    def stop(error: LockedError) -> None:
        lost.append(error)
        # a signal wakes a main thread that waits for others, which interrupt_main does not
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        with Lock(transport, cluster, _this_process(command), alive=_alive, lost=stop):
            yield
    except KeyboardInterrupt:
        if lost:
            raise lost[0] from None
        raise


def _this_process(command: str) -> Holder:
    return Holder(
        ident=secrets.token_hex(8),
        user=getpass.getuser(),
        machine=socket.gethostname(),
        pid=os.getpid(),
        command=command,
        since=time.strftime("since %H:%M:%S"),
    )


def _alive(holder: Holder) -> bool:
    """Return False only for a process of this machine that is known to have ended."""
    if holder.machine != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
