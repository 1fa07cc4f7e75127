"""Connects to the tests' own sshd, as a test may choose with the library or the system's ssh."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from raycluster.core.errors import HostError
from raycluster.hosts.transports.ssh import SshOptions, SshTransport, open_ssh
from tests.contract.sshd import Sshd

__all__ = ["Start", "failing", "open_ssh", "opened", "works"]
Start = Callable[..., Sshd]


@contextlib.contextmanager
def opened(
    options: SshOptions, *, ask: Callable[[str], str] | None = None
) -> Iterator[SshTransport]:
    """Open a transport and close it at the end."""
    with contextlib.closing(open_ssh("gpu-1", options, ask=ask)) as transport:
        yield transport


def failing(
    kind: type[HostError], options: SshOptions, *, ask: Callable[[str], str] | None = None
) -> HostError:
    """Return the error of an attempt to connect, after looking at what all of them have."""
    with pytest.raises(kind) as caught:
        open_ssh("gpu-1", options, ask=ask)
    assert type(caught.value) is kind
    assert caught.value.where == "gpu-1"
    assert caught.value.hint
    return caught.value


def works(options: SshOptions, *, ask: Callable[[str], str] | None = None) -> bool:
    """Connect and run a command."""
    with opened(options, ask=ask) as transport:
        return transport.run(("echo", "hi")).text == "hi"
