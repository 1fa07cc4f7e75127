"""A program on a terminal of its own, as a person would see it and press Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROWS, COLUMNS = 40, 120
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
ERASE = "\x1b[2K"  # a line, before it is drawn again
HOME = "\x1b[H"
CTRL_C = "\x03"


@dataclass
class Terminal:
    """A running program whose input, output and errors are one terminal; `seen` is all so far."""

    process: subprocess.Popen[bytes]
    end: int
    seen: str = field(default="", repr=False)

    def read(self, until: Callable[[str], object], *, seconds: float = 120.0) -> str:
        """Read until what was seen fulfils the condition; return all of it."""
        limit = time.monotonic() + seconds
        while not until(self.seen):
            ready, _, _ = select.select([self.end], [], [], max(0.0, limit - time.monotonic()))
            part = self._part() if ready else b""
            if not part:
                raise AssertionError(
                    f"not seen, in {seconds:g} s or before it ended:\n{self.seen[-2000:]!r}"
                )
            self.seen += part.decode(errors="replace")
        return self.seen

    def press(self, key: str) -> None:
        """Press a key; Ctrl-C interrupts what runs in the foreground."""
        os.write(self.end, key.encode())

    def close(self, *, seconds: float = 120.0) -> tuple[int, str]:
        """Read to the end; return the exit status and all that was seen."""
        limit = time.monotonic() + seconds
        while select.select([self.end], [], [], max(0.0, limit - time.monotonic()))[0]:
            part = self._part()
            if not part:
                break
            self.seen += part.decode(errors="replace")
        try:
            return self.process.wait(timeout=max(1.0, limit - time.monotonic())), self.seen
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.end)

    def _part(self) -> bytes:
        try:
            return os.read(self.end, 65536)
        except OSError:  # all have closed the other end
            return b""


def on_terminal(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None
) -> Terminal:
    """Start a program in the foreground of a new terminal."""
    end, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", *argv],
        env={**env, "TERM": "xterm-256color"},
        cwd=cwd,
        stdin=far,
        stdout=far,
        stderr=far,
    )
    os.close(far)
    return Terminal(process, end)
