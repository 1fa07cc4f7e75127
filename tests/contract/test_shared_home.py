"""Native hosts with one home folder, as sites of universities have it, each a sshd of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import pytest

from raycluster.contracts import Process, Versions
from raycluster.errors import HostError
from raycluster.runtimes.native import NativeRuntime
from raycluster.runtimes.native_remote import Remote
from raycluster.transports.ssh import SshTransport, open_ssh
from tests.contract.sshd import Login, Sshd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for hosts of their own")
SLEEPER = Process("worker", ("sleep", "1000"))


@dataclass(frozen=True)
class Apart(Login):
    """A login on a host with a name and processes of its own; its /etc is this machine's."""

    name: str = ""

    def entering(self, folder: Path) -> tuple[str, ...]:
        apart = ("--uts", "--pid", "--mount-proc", "--fork", "--kill-child")
        named = 'hostname "$0"; exec "$@"'
        return ("unshare", *apart, "sh", "-c", named, self.name, *super().entering(folder))


@dataclass(frozen=True)
class Site:
    """Two hosts, and the home folder that both have."""

    home: Path
    first: SshTransport
    second: SshTransport

    def runtime(self, transport: SshTransport) -> NativeRuntime:
        return NativeRuntime("h", "q", transport, python=sys.executable, start_on_boot=False)

    @property
    def left(self) -> list[Path]:
        return list(self.home.rglob("*"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Sshd]]]:
    folder = tmp_path_factory.mktemp("site")
    home = folder / "home"
    home.mkdir()
    logins = [Apart(home, "/bin/bash", name=name) for name in ("node-1", "node-2")]
    made = [Sshd(folder / login.name, login=login).start() for login in logins]
    yield home, made
    for each in made:
        assert each.child is not None
        each.child.kill()  # `unshare` heeds no other signal, and takes what it started along
        each.stop()


@pytest.fixture
def site(servers: tuple[Path, list[Sshd]]) -> Iterator[Site]:
    home, made = servers
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(contextlib.closing(open_ssh("h", each.options()))) for each in made
        )
        found = Site(home, first, second)
        yield found
        for transport in (first, second):
            found.runtime(transport).remove()
    assert found.left == []


def start(runtime: NativeRuntime, role: str, **files: bytes) -> None:
    process = Process(role, ("sleep", "1000"))
    runtime.start(process, Versions(), files, lambda _: None)


def seen(runtime: NativeRuntime) -> list[tuple[str, str]]:
    return [(found.role, found.health) for found in runtime.observe()]


def test_each_host_has_its_own_and_leaves_the_others_alone(site: Site) -> None:
    head, worker = site.runtime(site.first), site.runtime(site.second)
    start(head, "head", token=b"1")
    assert seen(worker) == []
    assert worker.read("token") == b""
    start(worker, "worker", token=b"2")
    assert (seen(head), seen(worker)) == ([("head", "running")], [("worker", "running")])
    assert (head.read("token"), worker.read("token")) == (b"1", b"2")
    worker.remove("head")
    start(worker, "worker", token=b"3")
    assert worker.remove()
    assert (seen(head), seen(worker)) == ([("head", "running")], [])
    start(worker, "worker")
    assert head.remove()
    assert (seen(head), seen(worker)) == ([], [("worker", "running")])
    start(head, "head")
    assert (seen(head), seen(worker)) == ([("head", "running")], [("worker", "running")])


def test_hosts_that_begin_at_once_have_different_folders(site: Site) -> None:
    together = Barrier(2)

    def places(transport: SshTransport, *, keep: bool) -> set[str]:
        remote = Remote("h", "q", transport)
        together.wait()
        return {remote.ask("where", keep=keep)["root"] for _ in range(3)}

    with ThreadPoolExecutor(2) as pool:
        for keep in (False, True):
            asked = [pool.submit(places, t, keep=keep) for t in (site.first, site.second)]
            first, second = (each.result() for each in asked)
    assert (len(first), len(second)) == (1, 1)
    assert first != second


def test_a_folder_of_before_there_was_a_note_is_whose_process_runs(site: Site) -> None:
    head, worker = site.runtime(site.first), site.runtime(site.second)
    start(head, "head", token=b"1")
    (site.home / ".raycluster/q/.host").unlink()
    assert seen(head) == [("head", "running")]
    start(worker, "worker")
    assert (seen(head), seen(worker)) == ([("head", "running")], [("worker", "running")])
    assert head.read("token") == b"1"


def test_a_host_that_gets_another_name_keeps_what_runs(site: Site) -> None:
    head = site.runtime(site.first)
    start(head, "head")
    try:
        assert site.first.run(("hostname", "renamed")).exit_code == 0
        assert seen(head) == [("head", "running")]
        start(head, "worker")
        assert [role for role, _ in seen(head)] == ["head", "worker"]
        assert head.remove("worker") == ("process worker",)
    finally:
        site.first.run(("hostname", "node-1"))
    assert seen(head) == [("head", "running")]


def test_a_home_that_cannot_be_written_to_is_said(site: Site) -> None:
    (site.home / ".raycluster").write_bytes(b"")
    try:
        with pytest.raises(HostError, match=r"cannot write in .*/\.raycluster/q"):
            start(site.runtime(site.first), "head")
    finally:
        (site.home / ".raycluster").unlink()
