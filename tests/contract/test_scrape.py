"""Replicas are asked over the SSH connection to their host; one that hangs ends no measurement."""

from __future__ import annotations

import getpass
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycluster.bench import server_metrics
from raycluster.hosts.fleet import Fleet
from tests.contract.sshd import SSHD, Sshd
from tests.unit.engine import Ports, engines

if SSHD is None:
    pytest.skip("there is no sshd", allow_module_level=True)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd").start()
    try:
        yield server
    finally:
        server.signal_workers(signal.SIGCONT)
        server.stop()


@contextmanager
def watching(sshd: Sshd, ports: Ports) -> Iterator[tuple[server_metrics.MetricsWatcher, list[str]]]:
    head = {
        "host": "127.0.0.1",
        "port": sshd.port,
        "user": getpass.getuser(),
        "identity_file": str(sshd.folder / "client"),
        "known_hosts": str(sshd.folder / "known_hosts"),
    }
    told: list[str] = []
    with (
        Fleet("scraped", 4) as fleet,
        server_metrics.of_cluster(ports.spec(head=head), fleet, "tiny", told.append) as watcher,
    ):
        yield watcher, told


def test_asks_replicas_through_ssh(sshd: Sshd) -> None:
    ports = Ports()
    with (
        engines(*ports.http[:2]) as [one, two],
        watching(sshd, ports) as (watcher, told),
    ):
        watcher.begin()
        one.took(5)
        two.took(2)
        server = watcher.end(time.monotonic())
    assert server is not None
    assert [(r.place, r.requests) for r in server.replicas] == [
        (f"head:{ports.http[0]}", 5),
        (f"head:{ports.http[1]}", 2),
    ]
    assert (server.unanswered, told) == (0, [])


def test_a_host_that_hangs_is_told_and_ends_nothing(sshd: Sshd) -> None:
    ports = Ports()
    with engines(ports.http[0]) as [engine], watching(sshd, ports) as (watcher, told):
        watcher.period = 600  # it looks at the beginning and in the end
        watcher.begin()
        engine.took(3)
        sshd.signal_workers(signal.SIGSTOP)
        began = time.monotonic()
        server = watcher.end(began)
        assert time.monotonic() - began < 15
        sshd.signal_workers(signal.SIGCONT)
    assert server is not None
    [replica] = server.replicas
    assert (replica.requests, replica.went) == (0, None)  # as far as it was seen
    assert server.unanswered == 2
    assert [line.partition(":")[0] for line in told] == ["head", "head"]
