"""The lab, a spec for its hosts, and the real program in a home of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.lab.hosts import Host, Lab, open_lab
from tests.lab.program import Cli
from tests.lab.specs import cluster_toml

PROGRAMS = (
    *("dockerd", "docker", "sshd", "ssh", "ip", "nft", "debootstrap", "cron", "iptables"),
    *("nginx", "prometheus", "gcc"),
)
SBIN = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three hosts with Docker and one without; tests leave them as they found them."""
    if os.geteuid() != 0:
        pytest.skip("the lab makes network namespaces: needs root")
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]:
        pytest.skip(f"the lab needs {', '.join(missing)}: `make test` as root installs them")
    with open_lab(tmp_path_factory.mktemp("lab") / "hosts") as opened:
        yield opened


def make_cli(lab: Lab, home: Path, env: Mapping[str, str] | None = None) -> Cli:
    """Return the program in a new home whose `.ssh` holds the lab's key and the hosts' keys."""
    ssh = home / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    shutil.copy(lab.key, ssh / "id_ed25519")
    shutil.copy(lab.known_hosts, ssh / "known_hosts")
    return Cli(home, env or {})


@pytest.fixture
def cli(lab: Lab, tmp_path: Path) -> Cli:
    """The program, in a home of its own."""
    return make_cli(lab, tmp_path / "home")


@pytest.fixture
def write_spec(lab: Lab, tmp_path: Path) -> Callable[..., Path]:
    """Write a spec for the given hosts, as `cluster_toml` makes it, and return its path."""

    def write(hosts: Sequence[Host], **options: object) -> Path:
        path = tmp_path / "cluster.toml"
        path.write_text(cluster_toml(lab, hosts, **options))  # type: ignore[arg-type]
        return path

    return write
