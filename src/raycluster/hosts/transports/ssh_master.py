"""The system's `ssh` as a master connection, which ends, with its folder, however we end."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from raycluster.core.errors import AuthError, HostError, HostKeyError, UnreachableError

LOGIN_SECONDS = 60.0
_POLL = 0.005
_END_SECONDS = 2.0
_SAID_BYTES = 65536
_MOST_SAID = 1 << 20
_SAID_LINES = 3
_SAID_CHARACTERS = 1000

OPTIONS = {
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    # the user's own configuration may hold any of these for this host
    "ClearAllForwardings": "yes",
    "ForkAfterAuthentication": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GatewayPorts": "no",
    "LogLevel": "INFO",  # a failed negotiation says nothing to ERROR
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "StdinNull": "no",
    "Tunnel": "no",
}
SILENT = {"BatchMode": "yes"}

# Ends ssh when our end of the pipe closes, however we ended, and removes its folder: by itself, ssh
# would wait for the last forwarded connection. Ends with ssh, and leaves standard output to it.
_KEEPER = """
folder=$1; shift
exec 3<&0
"$@" <&3 & ssh=$!
exec >/dev/null
{ read -r _; kill $ssh; } <&3 2>/dev/null & watch=$!
wait $ssh
kill $watch
rm -rf -- "$folder"
"""


def available(command: Sequence[str]) -> bool:
    """Tell whether this machine has the program that the command line names."""
    return bool(command) and shutil.which(command[0]) is not None


class Master:
    """A context manager around one `ssh`; `command` has the destination as its last word.

    `session` is the command that ssh runs there, nothing without it. `options` come before those
    of OPTIONS, `environment` is added to ours. ssh has no terminal: it cannot ask there.
    """

    def __init__(
        self,
        command: Sequence[str],
        host: str,
        *,
        session: str = "",
        options: Mapping[str, str] = SILENT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._host = host
        self._session = session
        self._options = {**OPTIONS, **options, "SessionType": "default" if session else "none"}
        self._environment = environment or {"SSH_ASKPASS_REQUIRE": "never"}
        self._resources = ExitStack()
        self.folder = Path()
        """Ours alone, with a path that is short enough for sockets."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # a Unix socket's path has at most about 100 characters: not below a long TMPDIR
            folder = tempfile.TemporaryDirectory(
                prefix="rct-", dir=short_folder(), ignore_cleanup_errors=True
            )
            self.folder = Path(stack.enter_context(folder))
            self._child = self._start(stack)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End ssh and remove the folder. May be called twice."""
        self._resources.close()

    @property
    def control(self) -> Path:
        """The socket at which ssh takes orders once it has logged in."""
        return self.folder / "ctl"

    def await_login(self, asking: Callable[[], bool] = lambda: False) -> None:
        """Return once ssh takes orders; no time counts while `asking`. Raises HostError."""
        left, since = LOGIN_SECONDS, time.monotonic()
        while not self.control.exists():
            if self._child.poll() is not None:
                raise self.refusal()
            if os.fstat(self._errors.fileno()).st_size > _MOST_SAID:
                raise UnreachableError(
                    f"prints more than {_MOST_SAID >> 20} MiB before the login",
                    where=self._host,
                    hint="check Banner in its sshd_config, and what responds there",
                )
            time.sleep(_POLL)
            now = time.monotonic()
            left -= 0.0 if asking() else now - since
            since = now
            if left < 0:
                raise self.too_late()

    def output(self, seconds: float) -> bytes | None:
        """Return what ssh wrote, b"" when it has ended, None when there is nothing yet."""
        assert self._child.stdout is not None  # noqa: S101 - asked for in _start
        ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        return self._child.stdout.read(4096) if ready else None

    def said(self) -> str:
        """Return the last lines of ssh's own words."""
        # not by its name: when ssh ends, the keeper removes the folder
        errors = self._errors.fileno()
        start = max(0, os.fstat(errors).st_size - _SAID_BYTES)
        return last_lines(os.pread(errors, _SAID_BYTES, start))

    def fell_silent(self) -> bool:
        """Tell whether ssh ended for want of a sign of life."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_END_SECONDS)
        return not self._errors.closed and "not responding" in self.said()

    def refusal(self) -> HostError:
        """Return the error for an ssh that ended before it was logged in."""
        return refusal(self.said(), self._host)

    def too_late(self) -> HostError:
        """Return the error for an ssh that is neither logged in nor at its end."""
        return UnreachableError(
            f"ssh did not log in within {LOGIN_SECONDS:.0f} s", where=self._host
        )

    def _start(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        options = [f"-o{name}={value}" for name, value in self._options.items()]
        program, *rest = self._command
        words = (self._session,) if self._session else ()
        ssh = (program, *options, f"-oControlPath={self.control}", *rest, *words)
        self._errors = stack.enter_context((self.folder / "errors").open("w+b"))
        child = subprocess.Popen(
            ("sh", "-c", _KEEPER, "raycluster-ssh", str(self.folder), *ssh),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, **self._environment},  # holds for jump hosts as well
            start_new_session=True,  # Ctrl-C is for us; we then end ssh
        )
        stack.callback(_end, child)
        return child


def last_lines(said: bytes) -> str:
    """Return the last of what ssh wrote, in one line, but for its warnings (`** WARNING: ...`)."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line and not line.startswith("** ")]
    return "; ".join(told[-_SAID_LINES:])[-_SAID_CHARACTERS:]


def refusal(said: str, host: str) -> HostError:
    """Return the error for what ssh wrote when it could not log in."""
    if "host key" in said.lower():
        return HostKeyError(
            said, where=host, hint="compare the key's fingerprint with the host's own"
        )
    if "permission denied" in said.lower() or "too many authentication" in said.lower():
        return AuthError(said, where=host, hint="add the key to the agent, or set it in the spec")
    return UnreachableError(
        said or "ssh exited without output", where=host, hint="try `raycluster ssh`"
    )


def short_folder() -> str | None:
    """Return where a temporary folder may be whose path is short enough for sockets."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 and Path("/tmp").is_dir() else None  # noqa: S108


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
