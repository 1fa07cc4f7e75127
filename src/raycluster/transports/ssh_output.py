"""Tells a command's own output from whatever else comes over the channel; pure.

A login shell's start-up files, ~/.ssh/rc and forced commands write to the same two channels. So
the line that `ssh_shell.command_text` makes writes a random mark to both before the command, and
to both after it, there with the status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.accelerators.values import clean
from raycluster.contracts import Channel
from raycluster.errors import HostError

SIGN = b"\x1e"
"""Begins a mark: rare in text, so that output is seldom held back."""
BEGIN_SECONDS = 10.0
"""Seconds from the request to the mark, after which a host does not run our command."""
_KEPT = 4096  # bytes of what comes before
_STATUS = re.compile(rb"([0-9]{1,3})\n")


@dataclass
class _Side:
    token: bytes
    begun: bool = False
    ended: bool = False
    status: int | None = None
    before: bytes = b""
    held: bytes = b""

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        self.held += data
        if not self.begun:
            before, mark, rest = self.held.partition(self.token + b"\n")
            if not mark:
                self.held = self.held[-_KEPT:]
                return b""
            self.begun, self.before, self.held = True, before, rest
        return self._own()

    def _own(self) -> bytes:
        """Return what is surely the command's, and hold back what may begin the second mark."""
        whole, begin = self.held, self.token + b" "
        at = whole.find(begin)
        if at < 0:
            at = whole.rfind(SIGN, max(0, len(whole) - len(begin)))
            at = at if at >= 0 and begin.startswith(whole[at:]) else len(whole)
        elif end := _STATUS.match(whole, at + len(begin)):
            self.ended, self.status = True, int(end[1])
        self.held = b"" if self.ended else whole[at:]
        return whole[:at]


class OwnOutput:
    """Is fed with what comes over both channels of one command, and returns what is its own."""

    def __init__(self, mark: str) -> None:
        token = SIGN + mark.encode()
        self._sides: dict[Channel, _Side] = {"stdout": _Side(token), "stderr": _Side(token)}

    def feed(self, channel: Channel, data: bytes) -> bytes:
        """Return the part of a piece that is the command's own; some may come with a later one."""
        return self._sides[channel].feed(data)

    @property
    def begun(self) -> bool:
        """Whether the host runs our command: both marks came. Its input may be sent from then on."""
        return all(side.begun for side in self._sides.values())

    @property
    def ended(self) -> bool:
        """Whether all of its output came; what follows is not its own."""
        return all(side.ended for side in self._sides.values())

    @property
    def status(self) -> int | None:
        """What it ended with, as a shell tells it: 128 and the number of a signal; None before."""
        return self._sides["stdout"].status

    def rest(self, channel: Channel) -> bytes:
        """Return what was held back, where a channel ends before the command's end was told."""
        side = self._sides[channel]
        held, side.held = (side.held, b"") if side.begun else (b"", side.held)
        return held

    def said_before(self) -> str:
        """Return the last words of both channels before the command, on one printable line."""
        sides = self._sides.values()
        said = [side.before if side.begun else side.held for side in sides]
        words = [clean(each[-1000:].decode("utf-8", "replace"), 300) for each in said]
        return " / ".join(word for word in words if word)
