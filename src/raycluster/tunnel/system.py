"""The system's `ssh` as forwarder: one master connection, and each forward asked of it."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from raycluster.errors import (
    AuthError,
    ConnectionLostError,
    HostError,
    HostKeyError,
    PortInUseError,
    UnreachableError,
)
from raycluster.tunnel.ports import LOOPBACK, Forward

UP = b"raycluster-tunnel-up\n"
LOGIN_SECONDS = 60.0
ORDER_SECONDS = 10.0
TICK = 0.2
_SAID_BYTES = 65536

OPTIONS = {
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    # the user's own configuration may hold any of these for this host
    "ClearAllForwardings": "yes",
    "ForkAfterAuthentication": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GatewayPorts": "no",
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "SessionType": "default",
    "StdinNull": "no",
    "Tunnel": "no",
}

# A session, not -N: sshd sends small packets at once only after a connection has had a session.
# It ends with its standard input, so nothing of it stays on the host.
SESSION = f"echo {UP.decode().strip()}; exec cat"

# Ends ssh, and removes its folder, when our end of the pipe closes, however we ended: by itself,
# ssh would wait for the last forwarded connection. Standard output is left to ssh alone, so that
# its end shows there.
KEEPER = """
folder=$1; shift
exec 3<&0
"$@" <&3 & ssh=$!
exec >/dev/null
read -r _
kill $ssh 2>/dev/null
wait $ssh
rm -rf -- "$folder"
"""


def available(command: Sequence[str]) -> bool:
    """Tell whether this machine has the program that the command line names."""
    return bool(command) and shutil.which(command[0]) is not None


class SystemForwarder:
    """A context manager: inside it, each forward's local port leads to its remote address.

    `command` is the ssh command line with the destination as its last word; `forwards` have their
    local ports chosen. Entering raises HostError: no login without asking, another host key, a
    local port that is taken. `wait` tells when the connection breaks.
    """

    def __init__(self, command: Sequence[str], forwards: Sequence[Forward], host: str) -> None:
        self._command = tuple(command)
        self._forwards = tuple(forwards)
        self._host = host
        self._folder = Path()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # a Unix socket's path has at most about 100 characters: not below a long TMPDIR
            folder = tempfile.TemporaryDirectory(
                prefix="rct-", dir=_short_folder(), ignore_cleanup_errors=True
            )
            self._folder = Path(stack.enter_context(folder))
            self._master = self._start(stack)
            self._await_login()
            for forward in self._forwards:
                self._order(forward)
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def wait(self, stop: Event) -> None:
        """Return when `stop` is set. Raises ConnectionLostError when the connection breaks."""
        while not stop.is_set():
            if self._output(TICK) == b"":
                raise ConnectionLostError(self._said() or "the connection broke", where=self._host)

    def _start(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        program, *rest = self._command
        ssh = (program, *options, f"-oControlPath={self._control}", *rest, SESSION)
        self._errors = stack.enter_context((self._folder / "errors").open("w+b"))
        master = subprocess.Popen(
            ("sh", "-c", KEEPER, "raycluster-tunnel", str(self._folder), *ssh),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},  # a jump host must not ask either
            start_new_session=True,  # Ctrl-C is for us; we then end ssh
        )
        stack.callback(_end, master)
        return master

    @property
    def _control(self) -> Path:
        return self._folder / "ctl"

    def _output(self, seconds: float) -> bytes | None:
        """Return what ssh wrote, b"" when it has ended, None when there is nothing yet."""
        assert self._master.stdout is not None  # noqa: S101 - asked for in _start
        ready, _, _ = select.select([self._master.stdout], [], [], seconds)
        return self._master.stdout.read(4096) if ready else None

    def _await_login(self) -> None:
        said = b""
        # the login shell's start-up files may write something before
        while not said.endswith(UP):
            output = self._output(LOGIN_SECONDS)
            if output is None:
                raise UnreachableError(
                    f"ssh did not log in within {LOGIN_SECONDS:.0f} s", where=self._host
                )
            if not output:
                raise refusal(self._said(), self._host)
            said = (said + output)[-4096:]

    def _order(self, forward: Forward) -> None:
        where = f"{LOOPBACK}:{forward.port}:{forward.target}"
        # -F none: the user's LocalForward lines would be ordered too
        order = (self._command[0], "-F", "none", "-S", str(self._control), "-O", "forward")
        try:
            done = subprocess.run(
                (*order, "-L", where, "raycluster"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ORDER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConnectionLostError("ssh does not take orders", where=self._host) from error
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip()
        if "forwarding failed" in said.lower():
            raise PortInUseError(
                f"cannot listen on {LOOPBACK}:{forward.port} for {forward.name}",
                where="this machine",
                hint="end the program that uses this port, or ask for another local port",
            )
        raise ConnectionLostError(said or "the connection broke", where=self._host)

    def _said(self) -> str:
        # not by its name: when ssh ends, the keeper's read may end too, and the folder is gone
        said = os.pread(self._errors.fileno(), _SAID_BYTES, 0)
        lines = said.decode("utf-8", "replace").splitlines()
        return "; ".join(line.strip() for line in lines[-3:] if line.strip())


def refusal(said: str, host: str) -> HostError:
    """Return the error for what ssh wrote when it could not log in."""
    if "host key" in said.lower():
        return HostKeyError(
            said, where=host, hint="compare the key's fingerprint with the host's own"
        )
    if "permission denied" in said.lower() or "too many authentication" in said.lower():
        return AuthError(said, where=host, hint="add the key to the agent, or name it in the spec")
    return UnreachableError(
        said or "ssh ended without a word", where=host, hint="try `raycluster ssh`"
    )


def _short_folder() -> str | None:
    return "/tmp" if len(tempfile.gettempdir()) > 60 and Path("/tmp").is_dir() else None  # noqa: S108


def _end(master: subprocess.Popen[bytes]) -> None:
    for pipe in (master.stdin, master.stdout):
        if pipe is not None:
            pipe.close()
    try:
        master.wait(5)
    except subprocess.TimeoutExpired:
        master.kill()
        master.wait()
