"""Runs a ProxyCommand of the ssh config, and says what became of it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading

from raycluster.core.errors import UnreachableError
from raycluster.hosts.transports.ssh_config import user_shell
from raycluster.hosts.transports.ssh_target import SshTarget

_END_SECONDS = 2.0
_MOST_SAID = 1000
_MOST_COMMAND = 200


class ProxyCommand(socket.socket):
    """A socket whose other end is the standard input and output of a ProxyCommand."""

    child: subprocess.Popen[bytes]
    command: str
    _said = _last = b""
    _ended = False
    _stopped = False
    _reader: threading.Thread

    @classmethod
    def start(cls, target: SshTarget, command: str) -> ProxyCommand:
        """Start it as `ssh` does, with the user's shell. Raises UnreachableError."""
        ours, theirs = socket.socketpair()
        with theirs:
            argv = (user_shell(), "-c", f"exec {command}")
            end = theirs.fileno()
            try:
                child = subprocess.Popen(argv, stdin=end, stdout=end, stderr=subprocess.PIPE)
            except OSError as error:
                ours.close()
                raise UnreachableError(
                    f"its ProxyCommand cannot be run with {argv[0]}: {error.strerror}",
                    where=target.name,
                    hint="correct ProxyCommand in the ssh config, or SHELL",
                ) from error
        wire = cls(fileno=ours.detach())
        wire.child, wire.command = child, command
        wire._reader = threading.Thread(target=wire._listen, daemon=True)
        wire._reader.start()
        return wire

    def _listen(self) -> None:
        """Keep the last that it says, so that none of it reaches our terminal."""
        assert self.child.stderr is not None  # noqa: S101 - it was asked for
        with self.child.stderr as stderr, contextlib.suppress(OSError, ValueError):
            while said := os.read(stderr.fileno(), _MOST_SAID):
                self._said = (self._said + said)[-_MOST_SAID:]

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return some bytes, none when the command closed the connection."""
        try:
            received = super().recv(size, flags)
        except ConnectionError:  # it closed without reading everything
            received = b""
        self._ended = not received
        return received

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Send some of the bytes; where the line is closed, look first at what came before."""
        try:
            return super().send(data, flags)
        except ConnectionError:
            self._last = self.recv(_MOST_SAID, socket.MSG_DONTWAIT)
            self._ended = True
            raise

    def close(self) -> None:
        """Close the line, and end the command."""
        super().close()
        if not self._has_ended():
            self._stopped = True
            self.child.terminate()
            try:
                self.child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def _has_ended(self) -> bool:
        """Tell whether the command ended by itself, which soon follows the end of the line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(_END_SECONDS if self._ended else 0)
            return not self._stopped
        return False

    def failed(self, target: SshTarget, opening: bytes) -> UnreachableError:
        """Return why nothing came of it; `opening` is what it printed."""
        ended, opening = self._ended, opening or self._last
        status = self.child.poll() if self._has_ended() else None
        if status is not None:
            self._reader.join(_END_SECONDS)
        shown = self.command[:_MOST_COMMAND]
        what = f"its ProxyCommand `{shown}{'...' if shown != self.command else ''}`"
        if opening:
            what += f" printed {_text(opening)!r}, which is not an SSH server, and"
        if status is None and not ended:
            what += f" reached no SSH server within {target.patience:g} s"
        elif status is None:
            what += " closed the connection"
        else:
            what += f" ended with {status}" if status >= 0 else f" killed by signal {-status}"
        said = _text(self._said)
        return UnreachableError(
            f"{what}: {said}" if said else f"{what}, and printed nothing",
            where=target.name,
            hint=_hint(status),
        )


def _hint(status: int | None) -> str:
    if status is None:
        return "run it by hand; if it is only slow, raise connect_timeout in the spec"
    if status in (126, 127):
        return "correct ProxyCommand in the ssh config: the program does not exist"
    return "run it by hand, and correct ProxyCommand in the ssh config"


def _text(said: bytes) -> str:
    """Return what was said, on one line."""
    lines = said.decode("utf-8", "replace").splitlines()
    return "; ".join(re.sub(r"\s+", " ", line).strip() for line in lines if line.strip())
