"""Hosts that keep the cluster's files in one folder are found, over real connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycluster.apply.preconditions.shared_folders import check_folders
from raycluster.core.errors import HostError
from raycluster.hosts.fleet import Fleet
from raycluster.spec import ClusterSpec
from tests.contract.sshd import SSHD, Sshd, wait_for


@pytest.fixture(scope="module")
def sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Sshd]]:
    """Yield two servers with one home folder, as hosts with a home on the network are."""
    if SSHD is None:
        pytest.skip("needs OpenSSH's server")
    servers = tuple(Sshd(tmp_path_factory.mktemp("sshd")).start() for _ in range(2))
    yield servers[0], servers[1]
    for server in servers:
        server.stop()


def spec_of(sshds: tuple[Sshd, Sshd], *folders: Path | None) -> ClusterSpec:
    hosts = []
    for server, folder in zip(sshds, folders, strict=True):
        options = server.options()
        runtime = {"kind": "native", **({"folder": str(folder)} if folder else {})}
        login = {"port": options.port, "user": options.user}
        keys = {"identity_file": options.identity_file, "known_hosts": options.known_hosts}
        hosts.append({"host": "127.0.0.1", **login, **keys, "runtime": runtime})
    return ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": hosts[0], "workers": [{**hosts[1], "name": "w"}]}
    )


def checked(spec: ClusterSpec, *names: str) -> None:
    with Fleet("q", 2) as fleet:
        fleet.reach(spec.hosts, lambda connected: connected.address)
        check_folders(spec, fleet, names or [host.name for host in spec.hosts])


def test_hosts_with_one_home_are_refused_and_keep_nothing_of_the_look(
    sshds: tuple[Sshd, Sshd],
) -> None:
    with pytest.raises(HostError, match=r"head: its folder .raycluster is shared with w"):
        checked(spec_of(sshds, None, None))
    places = (".raycluster-*", ".raycluster/.raycluster-*")
    # Other tests beside this one look there too, and leave nothing either.
    wait_for(lambda: not any(list(Path.home().glob(each)) for each in places), "nothing is left")


def test_so_are_hosts_with_another_folder_in_common(
    sshds: tuple[Sshd, Sshd], tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="is shared with w"):
        checked(spec_of(sshds, tmp_path / "not there yet", tmp_path / "not there yet"))
    assert not list(tmp_path.iterdir())


def test_hosts_with_folders_of_their_own_pass(sshds: tuple[Sshd, Sshd], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    checked(spec_of(sshds, tmp_path / "a", tmp_path / "b"))
    assert not [file for name in ("a", "b") for file in (tmp_path / name).iterdir()]


def test_a_lone_host_is_not_asked(sshds: tuple[Sshd, Sshd]) -> None:
    checked(spec_of(sshds, None, None), "w")
