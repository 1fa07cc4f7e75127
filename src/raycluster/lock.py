"""One run at a time changes a cluster: a lock on the head's host, alive while its holder beats.

No clocks are compared: a lock is abandoned when its beat did not change while another run looked.
"""

from __future__ import annotations

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
ABANDONED_S = 10.0
"""A lock whose beat stood still for so long is taken over; its holder then notices and stops."""

_TAKE = 'mkdir "$1" && printf %s "$2" >"$1/holder" && touch "$1/beat"'
_LOOK = 'cat "$1/holder" && echo && stat -c %y "$1/beat"'
_BEAT = 'grep -qF "$2" "$1/holder" 2>/dev/null && touch "$1/beat"'
_BREAK = 'mv -T "$1" "$1.$2" && rm -rf "$1.$2"'
_FREE = 'grep -qF "$2" "$1/holder" 2>/dev/null && rm -rf "$1"; true'


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


class Lock:
    """The lock of a cluster, held between enter and exit.

    `alive` tells whether the process of a holder on this machine still runs. `lost` is called from
    another thread when the lock was taken over, because this run stood still.
    """

    def __init__(
        self,
        transport: Transport,
        cluster: str,
        holder: Holder,
        *,
        alive: Callable[[Holder], bool],
        lost: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._cluster = cluster
        self._path = f"/tmp/raycluster-{cluster}.lock"  # noqa: S108  # mkdir makes it ours
        self._holder = holder
        self._alive = alive
        self._lost = lost
        self._sleep = sleep
        self._clock = clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        """Take the lock. Raises LockedError with its holder, and HostError."""
        while (refusal := self._refusal()) is not None:
            if self._look() is None and (refusal := self._refusal()) is None:
                break
            if self._look() is None:
                raise HostError(
                    f"the lock {self._path} cannot be made: {refusal}", where=self._cluster
                )
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
        try:
            self._sh(_FREE, self._holder.ident)
        except HostError:
            return  # the connection is gone, and the beat with it

    def _refusal(self) -> str | None:
        """Take the lock, or return what kept it from being taken."""
        done = self._run(_TAKE, json.dumps(asdict(self._holder)))
        return None if done.exit_code == 0 else done.stderr.decode("utf-8", "replace").strip()

    def _await_turn(self) -> None:
        """Return when the lock is free or abandoned; raise LockedError when its holder lives."""
        first = self._look()
        end = self._clock() + ABANDONED_S
        while first is not None and self._clock() < end:
            holder, _ = first
            if holder and not self._alive(holder):
                break
            self._sleep(BEAT_S / 2)
            now = self._look()
            if now is None:
                return
            if now != first:
                who = now[0].describe() if now[0] else "another run"
                raise LockedError(
                    f"is being changed by {who}",
                    where=self._cluster,
                    hint="wait until it has ended",
                )
        if first is not None and self._sh(_BREAK, self._holder.ident) is None and self._look():
            raise HostError(
                f"the abandoned lock {self._path} cannot be removed",
                where=self._cluster,
                hint="remove this folder on the head's host as its owner",
            )

    def _look(self) -> tuple[Holder | None, str] | None:
        seen = self._sh(_LOOK)
        if seen is None:
            return (None, "") if self._sh('test -d "$1"') is not None else None
        text, _, beat = seen.partition("\n")
        try:
            return Holder(**json.loads(text)), beat
        except (TypeError, ValueError):
            return None, beat

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if self._sh(_BEAT, self._holder.ident) is None and not self._over.is_set():
                    self._lost()
                    return
            except HostError:
                return  # the run itself meets the broken connection

    def _sh(self, script: str, *args: str) -> str | None:
        done = self._run(script, *args)
        return done.text if done.exit_code == 0 else None

    def _run(self, script: str, *args: str) -> Completed:
        return self._transport.run(("sh", "-c", script, "sh", self._path, *args))


@contextmanager
def holding(transport: Transport, cluster: str, command: str) -> Iterator[None]:
    """Hold the cluster's lock for this process. Raises LockedError, also when it is lost midway."""
    lost = threading.Event()

    def stop() -> None:
        lost.set()
        # a signal wakes a main thread that waits for others, which interrupt_main does not
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        with Lock(transport, cluster, _this_process(command), alive=_alive, lost=stop):
            yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise LockedError(
                "was taken over by another run while this one stood still",
                where=cluster,
                hint="run the command again",
            ) from None
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
