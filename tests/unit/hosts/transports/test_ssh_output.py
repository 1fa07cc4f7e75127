"""What is the command's own, in whatever pieces it comes."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raycluster.core.interfaces import Channel
from raycluster.hosts.transports.ssh_output import OwnOutput
from raycluster.hosts.transports.ssh_shell import new_mark

MARK = new_mark()
BEGIN, END = b"\x1e" + MARK.encode() + b"\n", b"\x1e" + MARK.encode() + b" %d\n"
# Pieces of marks are what a command's output is hardest to tell from.
BYTES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([BEGIN[:9], END[:16], b"\x1e", b"\n", b" 7\n", b"a"])).map(b"".join),
)


@given(before=BYTES, own=BYTES, after=BYTES, status=st.integers(0, 255), cuts=st.randoms())
def test_whatever_stands_around_it(
    before: bytes, own: bytes, after: bytes, status: int, cuts: random.Random
) -> None:
    assume(MARK.encode() not in before and MARK.encode() not in own)  # nobody can know it
    whole = before + BEGIN + own + END % status + after
    output, got = OwnOutput(MARK), b""
    output.feed("stderr", BEGIN + END % status)
    while whole:
        size = cuts.randint(1, len(whole))
        got += output.feed("stdout", whole[:size])
        whole = whole[size:]
    assert got == own
    assert output.ended
    assert output.status == status


def test_it_runs_once_both_channels_say_so() -> None:
    output = OwnOutput(MARK)
    channels: tuple[Channel, ...] = ("stdout", "stderr")
    for channel in channels:
        assert not output.begun
        assert output.feed(channel, b"Welcome" + BEGIN + b"a") == b"a"
    assert output.begun
    for channel in channels:
        assert not output.ended
        output.feed(channel, END % 0)
    assert output.ended


def test_what_was_held_back_comes_where_the_end_is_missing() -> None:
    output = OwnOutput(MARK)
    assert output.feed("stdout", BEGIN + b"a" + END[:5]) == b"a"
    assert output.rest("stdout") == END[:5]
    assert output.rest("stderr") == b""


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        (b'Please login as the user "ubuntu" rather than the user "root".\n', 'user = "ubuntu"'),
        (b"This account is currently not available.\n", "--shell /bin/sh"),
        (b"This service allows sftp connections only.\n", "internal-sftp"),
        (b"Password change required but no TTY available.\n", "change the password"),
        (b"WARNING: Your password has expired.\n", "change the password"),
        (b"rbash: line 1: exec: restricted\n", "restricted"),
        (b"", "command= in ~/.ssh/authorized_keys"),
        (b"\x1b]0;title\x07 \x1b[31mOh\xff dear \xe2\x80\xae" + b"x" * 9000, "command="),
    ],
)
def test_a_host_that_does_not_run_it_is_quoted(said: bytes, cure: str) -> None:
    output = OwnOutput(MARK)
    output.feed("stdout", said)
    output.feed("stderr", b"exec sh -c set\\ -f\\;IFS and all of it\nunknown command\n")
    error = output.did_not_run("gpu-1")
    assert error.where == "gpu-1"
    assert cure in error.hint
    assert (
        said.decode("utf-8", "ignore").split("\n")[0][:20].strip("\x1b") in error.what
        or b"\x1b" in said
    )
    assert "/ ... unknown command" in error.what or not said
    assert "IFS" not in error.what
    assert error.what.isprintable()
    assert len(error.what) < 1000


def test_a_host_that_waits_is_told_from_one_that_ends() -> None:
    assert "waits for input" in OwnOutput(MARK).did_not_run("gpu-1", 10.0).hint
    redirected = OwnOutput(MARK)
    redirected.feed("stdout", BEGIN)
    assert "redirects standard error" in redirected.did_not_run("gpu-1", 10.0).hint
