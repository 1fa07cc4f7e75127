"""What a login has tried so far, and the keys that it may try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from raycluster.hosts.transports.ssh_target import SshTarget

Ask = Callable[[str], str]
"""Returns the answer to a prompt; `tell`, where it has that, takes a line of progress."""


class SkippedKeyError(Exception):
    """A key that cannot be used; the text says why, `hint` what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True)
class LoginKey:
    """A public key or certificate, and what signs for it."""

    label: str
    blob: bytes
    sign: Callable[[str, bytes], bytes]
    """Takes the signature's algorithm and what to sign; raises SkippedKeyError."""
    asks_first: bool
    """Whether signing needs a person, so that the host is asked beforehand if it takes the key."""


@dataclass
class LoginAttempt:
    target: SshTarget
    ask: Ask | None
    tried: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    offered: set[bytes] = field(default_factory=set)
    rest: list[tuple[int, LoginKey, tuple[str, ...]]] = field(default_factory=list)
    """Places among `tried` of RSA keys that were refused, and what they were not tried with."""
    agent_hangs: int = 0
    for_ssh: str = ""
    """What the host would take, and only OpenSSH's own `ssh` can give."""
