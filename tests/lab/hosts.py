"""Test hosts on one machine: each a network namespace with its own disk, sshd and dockerd.

`python -m tests.lab.hosts up --dir FOLDER` keeps a lab running until Ctrl-C. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.host import PATH, Host, Kind, UnsupportedError, wait_for
from tests.lab.image import IMAGE, cached, image_archive
from tests.lab.network import FIRST_HOST, Network, own_folder, own_network, sh

__all__ = ["Host", "Lab", "UnsupportedError", "open_lab", "wait_for"]

CHECKOUT = Path(__file__).parents[2]
PRIVATE = {"tmp": 0o1777, "home": 0o755, "root": 0o711, "var/log": 0o755, "var/lib/docker": 0o710}
PRIVATE |= {"var/spool/cron/crontabs": 0o1730, "changes": 0o755, "work": 0o755}


@dataclass
class Lab:
    """Hosts on one network, a key pair that all of them admit, and the host keys to expect."""

    folder: Path
    network: Network
    node_env: Path
    model: Path
    tiny: Path
    hosts: list[Host] = field(default_factory=list)
    docker_seed: Path | None = None
    more_mounts: list[Path] = field(default_factory=list)

    @property
    def key(self) -> Path:
        """The private key that every user of every host admits."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' true keys, under address, IPv6 address and name."""
        return self.folder / "known_hosts"

    @property
    def node_python(self) -> str:
        """The Python that has Ray and vLLM, at the same path on every host and in containers."""
        return str(self.node_env / "bin" / "python")

    @property
    def mounts(self) -> list[Path]:
        """What hosts see of this machine, read-only, each at its own path."""
        ask = (self.node_python, "-c", "import sys; print(sys.base_prefix)")
        base = Path(sh(*ask).strip())
        bases = [] if base == Path("/usr") else [base]
        return [self.node_env, self.model, self.tiny, *bases, *self.more_mounts]

    @property
    def volumes(self) -> list[str]:
        """The spec's `volumes` that containers of the lab's image need."""
        return [f"{path}:{path}:ro" for path in self.mounts]

    @property
    def docker_hosts(self) -> list[Host]:
        """The hosts with Docker."""
        return [host for host in self.hosts if host.kind == "docker"]

    @property
    def native_hosts(self) -> list[Host]:
        """The hosts without Docker."""
        return [host for host in self.hosts if host.kind == "native"]

    def ssh(self, host: Host, *, user: str = "root") -> list[str]:
        """Return the plain `ssh` command that logs in to a host."""
        options = [f"UserKnownHostsFile={self.known_hosts}", "StrictHostKeyChecking=yes"]
        options += ["IdentitiesOnly=yes", "BatchMode=yes"]
        flags = [part for option in options for part in ("-o", option)]
        login = ["-p", str(host.ssh_port), f"{user}@{host.address}"]
        return ["ssh", "-F", "none", *flags, "-i", str(self.key), *login]

    def add_host(
        self,
        kind: Kind,
        *,
        ssh_port: int = 22,
        sshd_options: Mapping[str, str] | None = None,
    ) -> Host:
        """Make a host and start it; it is not ready yet (`settle`)."""
        name = f"{kind}-{1 + sum(host.kind == kind for host in self.hosts)}"
        number = max((host.number + 1 for host in self.hosts), default=FIRST_HOST)
        folder = self.folder / name
        host = Host(name, kind, number, self.network, folder, self.mounts, ssh_port=ssh_port)
        (folder / "root").mkdir(parents=True)
        for private, mode in PRIVATE.items():
            path = folder / "disk" / private
            path.mkdir(parents=True)
            path.chmod(mode)
        shutil.chown(folder / "disk/var/spool/cron/crontabs", "root", "crontab")
        if kind == "docker" and self.docker_seed:
            sh("tar", "-C", folder / "disk/var/lib/docker", "-xf", self.docker_seed)
        self._write_etc(host, sshd_options or {})
        self.hosts.append(host)
        self._write_known_hosts()
        host.start()
        return host

    def settle(self, hosts: Sequence[Host] | None = None) -> None:
        """Wait until the hosts are ready; what their disks hold by then is theirs."""
        hosts = self.hosts if hosts is None else hosts
        for host in hosts:
            host.wait_ready()
            host.made = host._disk()

    def remove_host(self, host: Host) -> None:
        """Cut a host's power and forget it with its disk."""
        host.power_off()
        self.hosts.remove(host)
        self._write_known_hosts()
        shutil.rmtree(host.folder)

    def close(self) -> None:
        """Cut every host's power."""
        for host in self.hosts:
            host.power_off()

    def _write_etc(self, host: Host, sshd_options: Mapping[str, str]) -> None:
        etc = host.folder / "disk/changes/etc"
        (etc / "ssh").mkdir(parents=True)
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n{host.address} {host.name}\n"
        )
        # A name server that cannot be reached would make Ray's start 15 s slower.
        (etc / "resolv.conf").write_text("")
        options = {
            **sshd_options,
            "HostKey": "/etc/ssh/lab_host_key",
            "AuthorizedKeysFile": "/etc/ssh/lab_authorized_keys .ssh/authorized_keys",
            "PasswordAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
            "PidFile": "/run/sshd.pid",
        }
        config = "".join(f"{key} {value}\n" for key, value in options.items())
        (etc / "ssh/lab_sshd_config").write_text(config)
        public = self.key.with_suffix(".pub").read_text()
        (etc / "ssh/lab_authorized_keys").write_text(public)
        make_key(host.host_key)

    def _write_known_hosts(self) -> None:
        self.known_hosts.write_text("".join(host.known_hosts_line for host in self.hosts))

    def seed_docker(self) -> None:
        """Give hosts that are added from now on a Docker that holds the lab's image already.

        Loading it into every host would take longer than all the rest of the lab's start.
        """
        image = image_archive()
        docker = (sh("dockerd", "--version"), self.node_env, image.name)

        def make(archive: Path) -> None:
            host = self.add_host("docker")
            host.wait_ready()
            change = f"ENV PATH={self.node_env}/bin:{PATH}"
            with image.open("rb") as content:
                load = ("docker", "import", "--change", change, "-", IMAGE)
                subprocess.run(host.enter(*load), stdin=content, check=True, capture_output=True)
            host.stop_service("dockerd")
            sh("tar", "-C", host.folder / "disk/var/lib/docker", "-cf", archive, ".")
            self.remove_host(host)

        self.docker_seed = cached("lab-docker", docker, make)


def make_key(path: Path) -> None:
    """Make a key pair without a passphrase."""
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path)


def script(name: str) -> Path:
    """Run one of the scripts that make something once, and return the path that it prints."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / name], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def open_lab(
    folder: Path, *, docker: int = 3, native: int = 1, subnet: str | None = None
) -> Iterator[Lab]:
    """Yield a lab of running hosts; in the end nothing runs, and `folder` is gone."""
    node_env, model, tiny = script("node-env"), script("model"), script("tiny")
    with own_network(subnet) as network, own_folder(network, folder):
        lab = Lab(folder, network, node_env, model, tiny)
        make_key(lab.key)
        try:
            if docker:
                lab.seed_docker()
            for kind, count in (("docker", docker), ("native", native)):
                for _ in range(count):
                    lab.add_host("docker" if kind == "docker" else "native")
            lab.settle()
            yield lab
        finally:
            lab.close()


def summary(lab: Lab) -> str:
    """Return what a person needs to use the lab, as JSON."""
    hosts = [
        {
            "name": host.name,
            "kind": host.kind,
            "address": host.address,
            "address6": host.address6,
            "ssh": shlex.join(lab.ssh(host)),
            "enter": f"nsenter --all --target {host.pid}",
        }
        for host in lab.hosts
    ]
    facts = {
        "key": str(lab.key),
        "known_hosts": str(lab.known_hosts),
        "image": IMAGE,
        "volumes": lab.volumes,
        "node_python": lab.node_python,
        "model": str(lab.model),
        "hosts": hosts,
    }
    return json.dumps(facts, indent=2)


def main() -> None:
    """Run a lab in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.hosts")
    parser.add_argument("command", choices=["up"])
    parser.add_argument("--dir", type=Path, required=True, help="made anew, removed at the end")
    parser.add_argument("--docker", type=int, default=3)
    parser.add_argument("--native", type=int, default=1)
    parser.add_argument("--subnet", help="such as 10.78.0; default: the first free one")
    options = parser.parse_args()
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: sys.exit(0))
    opened = open_lab(
        options.dir, docker=options.docker, native=options.native, subnet=options.subnet
    )
    with opened as lab:
        text = summary(lab)
        (lab.folder / "lab.json").write_text(text)
        print(text, "The lab runs until Ctrl-C.", sep="\n", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
