"""Tells a command's own output from whatever else comes over the channel; pure.

A login shell's start-up files, ~/.ssh/rc and forced commands write to the same two channels. So
the line that `ssh_shell.command_text` makes writes a random mark to both before the command, and
to both after it, there with the status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.core.errors import NotRunError
from raycluster.core.interfaces import Channel

CHANNELS: tuple[Channel, ...] = ("stdout", "stderr")
SIGN = b"\x1e"
"""Begins a mark: rare in text, so that output is seldom held back."""
BEGIN_SECONDS = 10.0
"""Seconds from the request to the mark, after which a host does not run our command."""
_CURES = tuple(
    (re.compile(sign, re.IGNORECASE), cure)
    for sign, cure in (
        (
            r"log ?in as (?:the )?user ['\"]?([a-z_][a-z0-9_.-]*)",
            'a forced command runs for this user: set user = "{0}"',
        ),
        (
            r"sftp",
            "sshd allows this user only SFTP (ForceCommand internal-sftp, or Match): log in as "
            "another user, or allow commands",
        ),
        (
            r"(?:password|account|passwor[dt].*)\W.*(?:expired?|abgelaufen)|"
            r"change (?:your|the) password|password change required",
            "log in once by hand and change the password, or have root change it (passwd, chage)",
        ),
        (
            r"not (?:currently )?available|nologin|account is (?:locked|disabled)",
            "this user's login shell does not allow logins: log in as another user, or set one "
            "there "
            "(usermod --shell /bin/sh)",
        ),
        (
            r"exec: sh:|\bsh: (?:command )?not found",
            "PATH does not lead to the host's programs: check SetEnv in sshd_config, "
            "~/.ssh/environment and the start-up files of the login shell",
        ),
        (
            r"restricted",
            "this user's login shell is restricted: log in as another user, or set "
            "another shell there (usermod --shell /bin/sh)",
        ),
    )
)
_WAITS = (
    "a start-up file of its login shell (~/.bashrc) waits for input, or starts another shell "
    "(`read`, `exec zsh`): limit that to terminals ([ -t 0 ]), or check the host's load"
)
_ENDS = (
    "check the start-up files of its login shell (`exit` or `exec` in ~/.bashrc), ForceCommand and "
    "ChrootDirectory in sshd_config, and command= in ~/.ssh/authorized_keys"
)
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_OURS = re.compile(r"(?:exec )?sh -c \S*set\S* -f.*")
_SHOWN = 400  # characters of a channel's words
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
        self._sides: dict[Channel, _Side] = {channel: _Side(token) for channel in CHANNELS}

    def feed(self, channel: Channel, data: bytes) -> bytes:
        """Return the part of a piece that is the command's own; some may come with a later one."""
        return self._sides[channel].feed(data)

    @property
    def started(self) -> bool:
        """Whether a mark came: the command runs, or is about to."""
        return any(side.begun for side in self._sides.values())

    @property
    def begun(self) -> bool:
        """Whether both marks came: the host runs our command, and its input may be sent."""
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

    def did_not_run(self, name: str, waited: float | None = None) -> NotRunError:
        """Return the error of a host that did not run the command, with its own words.

        `waited` are the seconds in which no mark came; without them the channel was closed.
        """
        words = " / ".join(filter(None, map(_words, self._sides.values())))
        said = words or "it printed nothing"
        what = f"the login worked, but the host did not run the command: {said}"
        if waited is not None:
            seconds = round(waited, 1)
            what = (
                f"the login worked, but the host did not run the command within {seconds:g} "
                f"s: {said}"
            )
        return NotRunError(
            what,
            where=name,
            hint=_cure(words, waited is not None, self.started and not self.begun),
        )


def _words(side: _Side) -> str:
    """Return what was said before the mark, on one printable line, without our own command."""
    text = (side.before if side.begun else side.held).decode("utf-8", "replace")
    text = _OURS.sub("...", _ESCAPE.sub(" ", text))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN // 2]} ... {line[-_SHOWN // 2 :]}"


def _cure(words: str, waited: bool, redirected: bool) -> str:
    if redirected:
        return "a start-up file of its login shell redirects standard error: remove that"
    for sign, cure in _CURES:
        if found := sign.search(words):
            return cure.format(*found.groups())
    return _WAITS if waited else _ENDS
