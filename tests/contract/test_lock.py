"""The lock of a cluster, on a real host: this machine."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from raycluster.contracts import Completed
from raycluster.errors import HostError, LockedError
from raycluster.lock import ABANDONED_S, Holder, Lock, holding
from raycluster.transports.local import LocalTransport
from tests.contract.sshd import wait_for

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
            lost=lambda _: None,
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
            clock=lambda: now[0],
        )

    silent = lock("silent")
    assert silent._taken()  # held, and its beat never started
    with lock("next"):
        assert now[0] >= ABANDONED_S
        silent.__exit__(None, None, None)
        assert "next" in Path(f"/tmp/raycluster-{cluster}.lock/holder").read_text()


def test_who_loses_the_lock_is_told(here: LocalTransport, cluster: str) -> None:
    lost: queue.SimpleQueue[LockedError] = queue.SimpleQueue()
    with Lock(here, cluster, foreign("a"), alive=lambda _: True, lost=lost.put):
        Path(f"/tmp/raycluster-{cluster}.lock/holder").write_text("{}")
        assert "taken over by another run" in lost.get(timeout=20).what
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


class Broken(LocalTransport):
    """This machine, over a connection that carries nothing while `down` is set."""

    def __init__(self) -> None:
        super().__init__("here")
        self.down = threading.Event()
        self.met = threading.Semaphore(0)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run, or raise what a broken connection raises."""
        if self.down.is_set():
            self.met.release()
            raise HostError("sshd did not open a session", where="here")
        return super().run(argv, input=input, env=env, timeout=timeout)


def beat_of(cluster: str) -> int:
    return Path(f"/tmp/raycluster-{cluster}.lock/beat").stat().st_mtime_ns


def test_the_beat_goes_on_after_it_failed(cluster: str) -> None:
    transport, lost = Broken(), list[LockedError]()
    with Lock(transport, cluster, foreign("a"), alive=lambda _: True, lost=lost.append):
        transport.down.set()
        assert transport.met.acquire(timeout=20)
        before = beat_of(cluster)
        transport.down.clear()
        wait_for(lambda: beat_of(cluster) != before, "it beats again")
    assert not lost


def test_a_holder_that_cannot_beat_is_told_before_others_may_follow(cluster: str) -> None:
    now, transport = [0.0], Broken()
    lost: queue.SimpleQueue[tuple[float, LockedError]] = queue.SimpleQueue()

    def clock() -> float:
        now[0] += 0.5  # a second for each beat
        return now[0]

    with Lock(
        transport,
        cluster,
        foreign("a"),
        alive=lambda _: True,
        lost=lambda error: lost.put((now[0], error)),
        clock=clock,
    ):
        transport.down.set()
        when, error = lost.get(timeout=60)
        transport.down.clear()
    assert "could not renew its lock: sshd did not open a session" in error.what
    assert when < ABANDONED_S


@pytest.mark.parametrize("_round", range(50))
def test_of_many_that_follow_a_dead_holder_one_gets_it(
    here: LocalTransport, cluster: str, _round: int
) -> None:
    folder = Path(f"/tmp/raycluster-{cluster}.lock")
    folder.mkdir()
    (folder / "holder").write_text(json.dumps(asdict(foreign("dead"))))
    (folder / "beat").touch()
    inside: list[str] = []
    most: list[int] = []
    together, over = threading.Barrier(6), threading.Event()

    def alive(holder: Holder) -> bool:
        if holder.ident != "dead":
            raise LockedError("one that lives was seen")
        return False

    def contend() -> None:
        ident = uuid.uuid4().hex
        together.wait()
        with (
            contextlib.suppress(LockedError),
            Lock(here, cluster, foreign(ident), alive=alive, lost=print),
        ):
            inside.append(ident)
            most.append(len(inside))
            over.wait(20)
            inside.remove(ident)

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum(t.is_alive() for t in threads) == len(inside) > 0, "all have tried")
    over.set()
    for thread in threads:
        thread.join(60)
    assert most == [1]
