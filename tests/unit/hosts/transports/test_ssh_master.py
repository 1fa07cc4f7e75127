"""What is made of the words of the system's ssh."""

from __future__ import annotations

import pytest

from raycluster.core.errors import AuthError, HostError, HostKeyError, UnreachableError
from raycluster.hosts.transports.ssh_master import available, refusal


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("root@10.0.0.1: Permission denied (publickey).", AuthError),
        ("Received disconnect from 10.0.0.1: Too many authentication failures", AuthError),
        ("Host key verification failed.", HostKeyError),
        ("No ED25519 host key is known for 10.0.0.1; strict checking.", HostKeyError),
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused", UnreachableError),
        ("ssh: Could not resolve hostname gpu-1: Name or service not known", UnreachableError),
        ("", UnreachableError),
    ],
)
def test_each_refusal_is_an_error_with_a_next_step(said: str, kind: type[HostError]) -> None:
    error = refusal(said, "head")
    assert type(error) is kind
    assert error.where == "head"
    assert error.what
    assert error.hint


@pytest.mark.parametrize(
    ("command", "there"), [(("sh", "host"), True), (("no-such-ssh", "host"), False), ((), False)]
)
def test_a_program_is_looked_for(command: tuple[str, ...], there: bool) -> None:
    assert available(command) is there
