"""The lock of a cluster, on a real host: this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycluster.errors import LockedError
from raycluster.lock import Holder, Lock, holding
from raycluster.transports.local import LocalTransport

HOLD = """
import sys
from raycluster.lock import holding
from raycluster.transports.local import LocalTransport
with holding(LocalTransport("here"), sys.argv[1], "raycluster up"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cluster() -> Iterator[str]:
    """A name of its own; no lock of it is left."""
    name = f"lock-{uuid.uuid4().hex[:8]}"
    yield name
    assert not Path(f"/tmp/raycluster-{name}.lock").exists()


@pytest.fixture
def here() -> Iterator[LocalTransport]:
    """This machine."""
    transport = LocalTransport("here")
    yield transport
    transport.close()


def other(cluster: str) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, cluster],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_taken_one_after_the_other(here: LocalTransport, cluster: str) -> None:
    for _ in range(2):
        with holding(here, cluster, "raycluster up"):
            assert Path(f"/tmp/raycluster-{cluster}.lock/holder").exists()


def test_the_loser_is_told_who_holds_it(here: LocalTransport, cluster: str) -> None:
    with other(cluster) as process:
        with (
            pytest.raises(LockedError, match=rf"`raycluster up` of .*process {process.pid}"),
            holding(here, cluster, "raycluster down"),
        ):
            pytest.fail("both hold it")
        process.communicate(timeout=20)


def test_a_killed_holder_of_this_machine_is_followed_at_once(
    here: LocalTransport, cluster: str
) -> None:
    with other(cluster) as process:
        process.kill()
    with holding(here, cluster, "raycluster up"):
        assert str(process.pid) not in Path(f"/tmp/raycluster-{cluster}.lock/holder").read_text()


def foreign(ident: str) -> Holder:
    return Holder(ident, "eve", "elsewhere", 1, "raycluster up", "since 00:00:00")


def test_a_holder_elsewhere_that_does_not_beat_is_followed_after_a_while(
    here: LocalTransport, cluster: str
) -> None:
    now = [0.0]

    def lock(ident: str) -> Lock:
        return Lock(
            here,
            cluster,
            foreign(ident),
            alive=lambda _: True,
            lost=lambda: None,
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
            clock=lambda: now[0],
        )

    silent = lock("silent")
    silent._refusal()  # held, and its beat never started
    with lock("next"):
        assert now[0] >= 10
        silent.__exit__(None, None, None)
        assert "next" in Path(f"/tmp/raycluster-{cluster}.lock/holder").read_text()


def test_who_loses_the_lock_is_told(here: LocalTransport, cluster: str) -> None:
    lost = threading.Event()
    with Lock(here, cluster, foreign("a"), alive=lambda _: True, lost=lost.set):
        Path(f"/tmp/raycluster-{cluster}.lock/holder").write_text("{}")
        assert lost.wait(20)
    Path(f"/tmp/raycluster-{cluster}.lock/holder").unlink()
    Path(f"/tmp/raycluster-{cluster}.lock/beat").unlink()
    Path(f"/tmp/raycluster-{cluster}.lock").rmdir()


def test_only_one_of_many_gets_it(here: LocalTransport, cluster: str) -> None:
    inside: list[int] = []
    refused: list[int] = []
    together = threading.Barrier(8)

    def contend() -> None:
        together.wait()
        try:
            with Lock(here, cluster, foreign(uuid.uuid4().hex), alive=lambda _: True, lost=print):
                inside.append(1)
                over.wait(20)
        except LockedError:
            refused.append(1)
            if len(refused) == 7:
                over.set()

    over = threading.Event()
    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(inside), len(refused)) == (1, 7)
