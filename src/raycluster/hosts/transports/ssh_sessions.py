"""Hands out sessions of one connection; waits where sshd's MaxSessions is reached."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

from raycluster.hosts.transports.ssh_channel import ChannelRefusedError, Session
from raycluster.hosts.transports.ssh_paramiko import Connection
from raycluster.hosts.transports.ssh_shell import command_text, kill_argv, new_mark

OPEN_SECONDS = 10.0
_GRACE_SECONDS = 0.3
_KILL_SECONDS = 4.0
_RETRIES = (
    60  # of 0.05 s: a command that was ended may take a moment, and has its session until then
)


class Sessions:
    """Opens and ends sessions; safe to use by many threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._change = threading.Condition()
        self._open = 0
        self._ended = 0

    def begin(self, timeout: float) -> Session:
        """Return an open session; waits up to `timeout` seconds where all are taken.

        Raises ChannelRefusedError, TimeoutError or ConnectionResetError.
        """
        deadline = time.monotonic() + timeout
        tries = 0
        while True:
            ended = self._ended
            try:
                session = self._connection.session(min(timeout, OPEN_SECONDS))
            except ChannelRefusedError as error:
                alone = self._open == 0 and self._ended == ended
                tries = tries + 1 if alone else 0
                if (
                    tries > _RETRIES
                    or error.reason == error.PROHIBITED
                    or time.monotonic() > deadline
                ):
                    raise
                self._await_change(ended, deadline)
            else:
                with self._change:
                    self._open += 1
                return session

    def _await_change(self, ended: int, deadline: float) -> None:
        # sshd frees a session a moment after both sides have closed it.
        longest = 0.5 if self._open else 0.05
        wait = min(longest, max(0.0, deadline - time.monotonic()))
        with self._change:
            self._change.wait_for(lambda: self._ended != ended, wait)

    def end(self, session: Session) -> None:
        """Close a session; a command that still runs gets TERM, and KILL if that does not help.

        What a start-up file left running may hold the session of one that has ended.
        """
        if not session.closed:
            if session.own_status is None:
                session.signal("TERM")
            if not _ends_within(session, _GRACE_SECONDS) and _runs(session):
                self._kill(session.mark)
        session.close()
        with self._change:
            self._open -= 1
            self._ended += 1
            self._change.notify_all()

    def _kill(self, mark: str) -> None:
        """Do what sshd does not where root logs in: it takes signals from other users only."""
        errors = (ChannelRefusedError, TimeoutError, ConnectionResetError, BrokenPipeError)
        with (
            contextlib.suppress(*errors),
            contextlib.closing(self._connection.session(_KILL_SECONDS)) as killer,
        ):
            killer.execute(command_text(kill_argv(mark), mark=new_mark()))
            killer.shutdown(socket.SHUT_WR)
            _ends_within(killer, _KILL_SECONDS)


def _runs(session: Session) -> bool:
    return session.begun and session.own_status is None


def _ends_within(session: Session, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        while session.output(max(0.0, deadline - time.monotonic())) is not None:
            if session.own_status is not None and session.status is not None:
                return True
            if time.monotonic() > deadline:  # it speaks without a pause
                return False
        return True
    return False
