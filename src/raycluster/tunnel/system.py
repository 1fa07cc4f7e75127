"""The system's `ssh` as forwarder: one master connection, and each forward asked of it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from threading import Event
from typing import Self

from raycluster.core.errors import ConnectionLostError, PortInUseError
from raycluster.hosts.transports.ssh_master import LOGIN_SECONDS, Master
from raycluster.tunnel.ports import LOOPBACK, Forward

UP = b"raycluster-tunnel-up\n"
ORDER_SECONDS = 10.0
TICK = 0.2

# A session, not -N: sshd sends small packets at once only after a connection has had a session.
# It ends with its standard input, so nothing of it stays on the host.
SESSION = f"echo {UP.decode().strip()}; exec cat"


class SystemForwarder:
    """A context manager: inside it, each forward's local port leads to its remote address.

    `command` is the ssh command line with the destination as its last word; `forwards` have their
    local ports chosen. Entering raises HostError: no login without asking, another host key, a
    local port that is taken. `wait` tells when the connection breaks.
    """

    def __init__(self, command: Sequence[str], forwards: Sequence[Forward], host: str) -> None:
        self._master = Master(command, host, session=SESSION)
        self._program = command[0]
        self._forwards = tuple(forwards)
        self._host = host
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._master)
            self._master.await_login()
            self._await_session()
            for forward in self._forwards:
                self._order(forward)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def wait(self, stop: Event) -> None:
        while not stop.is_set():
            if self._master.output(TICK) == b"":
                raise self._lost(self._master.said())

    def _await_session(self) -> None:
        said = b""
        # the login shell's start-up files may write something before
        while not said.endswith(UP):
            output = self._master.output(LOGIN_SECONDS)
            if output is None:
                raise self._master.too_late()
            if not output:
                raise self._master.refusal()
            said = (said + output)[-4096:]

    def _order(self, forward: Forward) -> None:
        where = f"{LOOPBACK}:{forward.port}:{forward.target}"
        # -F none: the user's LocalForward lines would be ordered too
        order = (self._program, "-F", "none", "-S", str(self._master.control), "-O", "forward")
        try:
            done = subprocess.run(
                (*order, "-L", where, "raycluster"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ORDER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._lost("ssh does not accept control commands") from error
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip()
        if "forwarding failed" in said.lower():
            raise PortInUseError(
                f"cannot listen on {LOOPBACK}:{forward.port} for {forward.name}",
                where="this machine",
                hint="stop the program that uses this port, or choose another local port",
            )
        raise self._lost(said)

    def _lost(self, said: str) -> ConnectionLostError:
        return ConnectionLostError(said or "the connection broke", where=self._host)
