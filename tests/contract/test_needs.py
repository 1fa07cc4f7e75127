"""What `up` needs of a host: `check` tells what is missing, and `up` ends before any change."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.applications import _wait_for_router
from raycluster.apply.context import ApplyContext
from raycluster.apply.converge import up
from raycluster.apply.node_checks import refuse_versions
from raycluster.apply.node_waits import wait_for_head
from raycluster.apply.preconditions import connectivity
from raycluster.apply.preconditions.connectivity import shared_ports, try_neighbours
from raycluster.apply.smoke_test import prove
from raycluster.check.hosts import Finding, check_hosts
from raycluster.core.errors import ForwardRefusedError, HostError, VersionMismatchError
from raycluster.core.interfaces import Secret
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.http import http_client
from raycluster.hosts.lock import holding
from raycluster.observe.facts import facts_of, read_listening
from raycluster.plan.actions import Start
from raycluster.services.processes import desired
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState
from tests.contract.odd_hosts import BARE, OddHost
from tests.contract.sshd import SSHD, Login, Sshd, wait_for
from tests.ports import free_port, free_ports

if SSHD is None or os.geteuid() != 0:
    pytest.skip("needs OpenSSH's server, and root for mounts of its own", allow_module_level=True)

AT_ONCE = 15.0
OTHER_PYTHON = "3.12" if sys.version_info[:2] == (3, 13) else "3.13"
NAMES = ("gcs", "node_manager", "object_manager", "api", "dashboard")


@dataclass(frozen=True)
class Host:
    """A server, its folder of homes, and a spec of it alone."""

    server: Sshd
    home: Path

    def spec(self, **more: Any) -> ClusterSpec:
        server = self.server
        document: Mapping[str, Any] = {
            "cluster": {"name": "needs"},
            "runtime": {"kind": "native", "python": sys.executable, "start_on_boot": False},
            "ports": dict(zip(NAMES, free_ports(len(NAMES)), strict=True)),
            "head": {
                "host": "127.0.0.1",
                "gpus": 0,
                "port": server.port,
                "user": server.options().user,
                "identity_file": f"{server.folder}/client",
                "known_hosts": f"{server.folder}/known_hosts",
            },
            "models": [{"name": "m", "source": "/models/m"}],
        }
        return ClusterSpec.model_validate({**document, **more})


@contextmanager
def host(folder: Path, extra: str = "", *mounts: str, **login: Any) -> Iterator[Host]:
    """Yield a host whose sshd has these lines, where these were mounted."""
    home = folder / "home"
    home.mkdir()
    steps = tuple(step.format(home=home, sshd=folder / "sshd") for step in mounts)
    who = Login(**{"home": home, "shell": "/bin/sh", "mounts": steps, **login})
    server = Sshd(folder / "sshd", extra, login=who).start()
    try:
        yield Host(server, home)
    finally:
        server.stop()


@contextmanager
def closing_server(server: Sshd) -> Iterator[Sshd]:
    """Start a server, and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wrong(spec: ClusterSpec, also: str = "\0") -> list[Finding]:
    """Return what `check` finds wrong that is no concern of other tests, and what says `also`."""
    with Fleet("needs", 2) as fleet:
        found = [f for f in check_hosts(spec, fleet) if not f.passed and f.subject != "disk"]
    # the tests' own Python has no ray, and another test may have a port
    mine = ("has no ray", "is already in use")
    return [f for f in found if also in f.text or not any(words in f.text for words in mine)]


def why_not(spec: ClusterSpec) -> str:
    """Return what `up` says, which has to come at once."""
    began = time.monotonic()
    with Fleet("needs", 2) as fleet, pytest.raises(HostError) as caught:
        up(spec, fleet, Secrets(), lambda _: None)
    assert time.monotonic() - began < AT_ONCE
    return str(caught.value)


OVER_HOME = "mount --bind {home} {home}; mount -o remount,bind,%s {home}"
OVER_TMP = (
    "mount --bind /tmp /tmp; mount -o remount,bind,%s /tmp; "
    "mount --bind {sshd} {sshd}; mount -o remount,bind,rw {sshd}; "
    "mount --bind {home} {home}; mount -o remount,bind,rw {home}"
)
FULL = "mount -t tmpfs -o size=%s none %s; head -c 9999999 /dev/zero >%s/fill || true"


@pytest.mark.parametrize(
    ("extra", "mounts", "words", "cure"),
    [
        ("AllowTcpForwarding no", (), "sshd forbids forwarding", "AllowTcpForwarding yes"),
        ("PermitOpen none", (), "sshd forbids forwarding", "PermitOpen"),
        ("DisableForwarding yes", (), "sshd forbids forwarding", "DisableForwarding"),
        ("", (OVER_HOME % "ro",), "Read-only file system", "rw"),
        ("", (OVER_HOME % "noexec",), "programs in {home} cannot be run", "noexec"),
        ("", (FULL % ("64k", "{home}", "{home}"),), "{home} is full: 0 KiB", "df -h"),
        ("", ("mount -t tmpfs -o nr_inodes=1 none {home}",), "No space left on device", "df -i"),
        ("", ("rmdir {home}",), "the home folder {home} does not exist", "mkhomedir"),
        ("", ("ln -s /nowhere/else {home}/.raycluster",), "/.raycluster is not a folder", "link"),
        ("", (OVER_TMP % "ro",), "Read-only file system", "/tmp"),
        ("", (OVER_TMP % "noexec",), "programs in /tmp cannot be run", "noexec"),
        ("", ("mount -t tmpfs -o ro none /dev/shm",), "cannot write to /dev/shm", "rw"),
        ("", ("ulimit -n 500",), "may open 500 files", "limits.conf"),
        ("SetEnv HOME=", (), "HOME is not set", "HOME"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_tells_what_up_would_fail_for(
    tmp_path: Path, extra: str, mounts: tuple[str, ...], words: str, cure: str
) -> None:
    with host(tmp_path, extra, *mounts) as odd:
        spec, words = odd.spec(), words.format(home=odd.home)
        [found] = [f for f in wrong(spec) if words in f.text]
        assert found.subject in ("storage", "forwarding", "open files")
        assert cure in found.hint
        said = why_not(spec)
        assert words in said
        assert cure in said
        assert not list(odd.home.glob(".raycluster/*"))


def test_up_names_all_that_is_wrong_in_one_run(tmp_path: Path) -> None:
    with (
        host(tmp_path, "AllowTcpForwarding no", OVER_TMP % "noexec") as odd,
        socket.create_server(("127.0.0.1", taken := free_port())),
    ):
        plain = odd.spec()
        head = {**plain.head.model_dump(exclude_none=True), "gpus": 2}
        ports = {name: getattr(plain.ports, name) for name in NAMES}
        spec = odd.spec(head=head, ports={**ports, "dashboard": taken})
        said, found = why_not(spec), [f.text for f in wrong(spec, also=f"port {taken}")]
    for words in (
        *("programs in /tmp cannot be run", "sshd forbids forwarding", "gpus = 2, but"),
        f"port {taken} is already in use",
    ):
        assert said.count(words) == 1, said
        assert any(words in text for text in found), found


def test_check_leaves_nothing_behind_and_finds_nothing_wrong(tmp_path: Path) -> None:
    with host(tmp_path) as fine:
        before = set(Path("/tmp").glob(".raycluster-*"))
        assert not wrong(fine.spec())
        # Other tests beside this one look here too, and leave nothing either.
        wait_for(lambda: set(Path("/tmp").glob(".raycluster-*")) <= before, "nothing is left")
        assert not list(fine.home.iterdir())


def test_a_host_of_odd_names_without_bash_is_fine(odd_sshds: Callable[[OddHost], Sshd]) -> None:
    server = odd_sshds(BARE)
    assert server.login is not None
    odd = Host(server, server.login.home)
    before = set(odd.home.rglob("*"))
    spec = odd.spec()
    assert not wrong(spec)
    with Fleet("needs", 2) as fleet:
        fleet.open(spec.hosts[0])
        with (
            closing(fleet.new_connection("head")) as own,
            holding(own, f"needs-{os.getpid()}", "up"),
        ):
            pass
    assert set(odd.home.rglob("*")) == before


def test_a_port_that_sshd_forbids_is_told_from_one_that_nobody_has(tmp_path: Path) -> None:
    with host(tmp_path, "PermitOpen 127.0.0.1:1") as odd, Fleet("needs", 1) as fleet:
        transport = fleet.open(odd.spec().hosts[0]).transport
        with pytest.raises(ForwardRefusedError):
            transport.connect(("127.0.0.1", 2))
        with pytest.raises(HostError) as caught:
            transport.connect(("127.0.0.1", 1))
        assert not isinstance(caught.value, ForwardRefusedError)


def test_a_wait_ends_at_once_for_what_lasts(tmp_path: Path) -> None:
    with host(tmp_path, "AllowTcpForwarding no") as odd, Fleet("needs", 1) as fleet:
        spec = odd.spec()
        transport = fleet.open(spec.hosts[0]).transport
        work = ApplyContext(spec, fleet, Secret("t"), Secrets(), lambda _: None)
        waits: list[Callable[[], object]] = [lambda: wait_for_head(work), lambda: prove(work)]
        with http_client(transport, spec.ports.api) as client:
            waits.append(lambda: _wait_for_router(client))
            for wait in waits:
                began = time.monotonic()
                with pytest.raises(ForwardRefusedError):
                    wait()
                assert time.monotonic() - began < AT_ONCE


PYTHONS = ("python3", "python3.11")


@pytest.mark.parametrize(
    ("extra", "without", "said"),
    [
        ("", (), "can reach gpu-2 at 127.0.0.2"),
        ("MaxSessions 1", (), "can reach gpu-2 at 127.0.0.2"),
        ("", ("bash", *PYTHONS), "can reach gpu-2 at 127.0.0.2"),
        ("", ("bash", "perl", *PYTHONS), "could not test whether it can reach gpu-2 at 127.0.0.2"),
        (
            "",
            ("bash", "perl", "busybox", *PYTHONS),
            "could not test whether it can reach gpu-2 at 127.0.0.2: testing needs python3",
        ),
    ],
)
def test_the_way_to_a_neighbour_without_this_and_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: str,
    without: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(connectivity, "BESIDE_S", 1.0 if extra else connectivity.BESIDE_S)
    with (
        host(tmp_path, extra, without=without) as odd,
        closing_server(Sshd(tmp_path / "other", extra, login=odd.server.login)) as other,
        Fleet("needs", 2) as fleet,
    ):
        (odd.home / ".profile").write_text("PATH=/usr/bin:/bin\n")
        head = odd.spec().head.model_dump(exclude_none=True)
        worker = {"name": "gpu-2", "port": other.port, "private_address": "127.0.0.2"}
        known = {"known_hosts": f"{other.folder}/known_hosts"}
        identity = {"identity_file": f"{other.folder}/client"}
        spec = odd.spec(workers=[{**head, **worker, **known, **identity}])
        fleet.reach(spec.hosts, lambda connected: connected.address)
        tried = try_neighbours(spec, fleet, {"head": "127.0.0.1", "gpu-2": "127.0.0.2"})
        listening = read_listening(fleet["head"].transport)
    [only] = tried["head"]
    assert not only.failed
    assert said in only.text
    tried_at = {spec.ports.gcs, spec.ports.node_manager, spec.ports.object_manager}
    assert tried_at < set(shared_ports(spec))
    assert listening.isdisjoint(tried_at)  # who listened for it is gone


def test_a_disk_without_inodes_is_not_called_full(tmp_path: Path) -> None:
    with host(tmp_path, "", "mount -t tmpfs -o nr_inodes=2 none {home}") as odd:
        [found] = [f for f in wrong(odd.spec()) if f.subject == "storage"]
        assert f"{odd.home} takes no further file, although" in found.text
        assert "df -i" in found.hint
        assert not list(odd.home.iterdir())


def test_a_mount_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    (hanging := tmp_path / "df").write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    with host(tmp_path, "", f"mount --bind {hanging} /usr/bin/df") as odd, Fleet("n", 1) as fleet:
        facts = facts_of(fleet.open(odd.spec().hosts[0]))
    assert facts.disk_free_bytes is None
    assert "df did not respond within 5 s" in facts.disk_problem


def test_programs_that_trying_needs_are_named_before_anything_is_tried(tmp_path: Path) -> None:
    with host(tmp_path, without=("mktemp",)) as odd:
        spec, said = odd.spec(), "the host lacks programs: mktemp"
        assert [f.text for f in wrong(spec) if f.subject == "storage"] == [said]
        assert said in why_not(spec)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("ulimit -t 5000", "the CPU time of a process is limited"),
        ("ulimit -v 90000000", "the address space of a process is limited"),
        ("ulimit -f 9000000", "the file size is limited"),
    ],
)
def test_a_limit_that_ends_what_runs_long(tmp_path: Path, limit: str, said: str) -> None:
    with host(tmp_path, "", limit) as odd:
        [found] = [f for f in wrong(odd.spec()) if said in f.text]
        assert "limits.conf" in found.hint
        assert said in why_not(odd.spec())


def test_a_disk_that_is_full_behind_the_first_bytes(tmp_path: Path) -> None:
    with host(tmp_path, "", "mount -t tmpfs -o size=256k none {home}") as odd:
        [found] = [f for f in wrong(odd.spec()) if "cannot be written" in f.text]
        assert "quota" in found.hint
        assert "cannot be written" in why_not(odd.spec())


@pytest.mark.parametrize("setting", ["folder", "python"])
def test_a_path_that_no_search_path_can_hold(tmp_path: Path, setting: str) -> None:
    path = f"{tmp_path}/nas:data"
    runtime = {"kind": "native", "start_on_boot": False, setting: f"{path}/python"}
    with host(tmp_path) as odd:
        [found] = [f for f in wrong(odd.spec(runtime=runtime)) if "colon" in f.text]
        assert setting in found.hint
        assert f"{path}" in why_not(odd.spec(runtime=runtime))
    assert not Path(path).exists()


def with_ray(folder: Path, version: str) -> str:
    """Return a Python that holds a package by the name of Ray."""
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    told = Path(packages, f"ray-{version}.dist-info/METADATA")
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: ray\nVersion: {version}\n")
    return str(folder / "bin/python")


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"python": "2.59.0"}, r"Ray differs.*w has 2\.59\.0"),
        ({"python_version": OTHER_PYTHON}, f"Python differs.*w has {OTHER_PYTHON}"),
    ],
)
def test_versions_of_hosts_are_compared_before_anything_is_brought(
    tmp_path: Path, runtime: dict[str, str], said: str
) -> None:
    home = tmp_path / "home of the other"
    home.mkdir()
    with (
        host(tmp_path) as odd,
        closing_server(Sshd(tmp_path / "other", login=Login(home, "/bin/sh"))) as other,
        Fleet("needs", 2) as fleet,
    ):
        if version := runtime.get("python"):
            runtime = {"python": with_ray(tmp_path / "b", version)}
        login = odd.spec().head.model_dump(exclude_none=True)
        key, known = f"{other.folder}/client", f"{other.folder}/known_hosts"
        there = {**login, "port": other.port, "identity_file": key, "known_hosts": known}
        head = {**login, "runtime": {"python": with_ray(tmp_path / "a", "2.60.0")}}
        workers = [{**there, "name": "w", "runtime": runtime}]
        spec = odd.spec(runtime={"kind": "native"}, head=head, workers=workers)
        fleet.reach(spec.hosts, lambda connected: connected.address)
        wiring = Wiring({each.name: "192.0.2.1" for each in spec.hosts}, Secret("t"))
        nodes = [desired(spec, each, wiring)[0] for each in spec.hosts]
        starts = [Start(h.name, p, "") for h, p in zip(spec.hosts, nodes, strict=True)]
        work = ApplyContext(spec, fleet, Secret("t"), Secrets(), lambda _: None)
        with pytest.raises(VersionMismatchError, match=said):
            refuse_versions(work, ClusterState({}), starts, {})
        assert not (odd.home / ".raycluster").exists()


def test_a_python_that_is_named_and_of_no_use(tmp_path: Path) -> None:
    runtime = {"kind": "native", "python": "/nowhere/python", "start_on_boot": False}
    with host(tmp_path) as odd:
        [found] = [f for f in wrong(odd.spec(runtime=runtime)) if "/nowhere/python" in f.text]
        assert "does not exist" in found.text
        assert "/nowhere/python does not exist" in why_not(odd.spec(runtime=runtime))
