"""The network of a lab: one bridge, a namespace and a cable per host, and who owns them.

Everything is named after the lab's subnet, so that what a killed run left behind is found again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import IO

LOCKS = Path("/run/raycluster-lab")
CGROUPS = Path("/sys/fs/cgroup")
FIRST_HOST = 11
SHARES = 2048
"""What a lab's containers get of a processor, where a session of this machine gets 1024."""


def sh(*argv: str | Path, stdin: str = "") -> str:
    """Run a command of this machine and return its output; raises with what it wrote."""
    done = subprocess.run(
        [str(arg) for arg in argv], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr or done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Network:
    """A lab's addresses: `subnet` is the first three numbers of an IPv4 /24, as in "10.77.0"."""

    subnet: str

    @property
    def tag(self) -> str:
        """What every name of this lab begins with; short, for Linux allows 15 characters."""
        return "rc" + IPv4Address(f"{self.subnet}.0").packed[:3].hex()

    def name(self, number: int) -> str:
        """Return the name of a host's namespace, which is that of its cable's near end too."""
        return f"{self.tag}h{number}"

    def ipv4(self, number: int) -> str:
        """Return the address of a host, or of this machine for 1."""
        return f"{self.subnet}.{number}"

    def ipv6(self, number: int) -> str:
        """Return the IPv6 address of a host, or of this machine for 1."""
        return str(IPv6Address(f"fd00:{self.subnet.replace('.', ':')}::{number}"))

    def create(self) -> None:
        """Make the bridge with this machine's end of the network."""
        sh("ip", "link", "add", self.tag, "type", "bridge")
        sh("ip", "address", "add", f"{self.ipv4(1)}/24", "dev", self.tag)
        sh("ip", "address", "add", f"{self.ipv6(1)}/64", "dev", self.tag, "nodad")
        sh("ip", "link", "set", self.tag, "up")
        # Docker's rules on this machine would otherwise decide what passes between the hosts.
        filtering = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        if filtering.exists():
            filtering.write_text("0")
        # All containers of a lab together would get as much of the processors as one session here.
        if (CGROUPS / "cpu").exists():
            (CGROUPS / "cpu" / self.tag).mkdir(exist_ok=True)
            (CGROUPS / "cpu" / self.tag / "cpu.shares").write_text(str(SHARES))

    def add_host(self, number: int) -> None:
        """Make a host's namespace and cable."""
        name = self.name(number)
        sh("ip", "netns", "add", name)
        mac = f"02:{self.tag[2:4]}:{self.tag[4:6]}:{self.tag[6:]}:00:{number:02x}"
        far = ("peer", "name", "eth0", "netns", name, "address", mac)
        sh("ip", "link", "add", name, "type", "veth", *far)
        sh("ip", "link", "set", name, "master", self.tag, "up")
        inside = ("ip", "-n", name)
        sh(*inside, "link", "set", "lo", "up")
        sh(*inside, "address", "add", f"{self.ipv4(number)}/24", "dev", "eth0")
        sh(*inside, "address", "add", f"{self.ipv6(number)}/64", "dev", "eth0", "nodad")
        sh(*inside, "link", "set", "eth0", "up")

    def remove_host(self, number: int) -> None:
        """End what runs in a host's namespace, then remove it with its cable."""
        name = self.name(number)
        kill_all(name)
        # With the namespace alone the cable would go too, but at some later time.
        if Path(f"/sys/class/net/{name}").exists():
            sh("ip", "link", "delete", name)
        sh("ip", "netns", "delete", name)

    def remove(self) -> None:
        """Remove everything that carries this lab's name."""
        for line in sh("ip", "netns", "list").splitlines():
            name = line.split()[0]
            if name.startswith(f"{self.tag}h"):
                self.remove_host(int(name.removeprefix(f"{self.tag}h")))
        for link in Path("/sys/class/net").glob(f"{self.tag}*"):
            sh("ip", "link", "delete", link.name)
        for line in Path("/proc/mounts").read_text().splitlines():
            source, folder = line.split()[:2]
            if source == self.tag:
                sh("umount", "--lazy", folder)
        remove_cgroups(self.tag)


def kill_all(namespace: str) -> None:
    """Kill every process in a network namespace and wait until none is left."""
    while pids := sh("ip", "netns", "pids", namespace).split():
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove_cgroups(tag: str) -> None:
    """Remove the control groups that a lab's Docker daemons made; they outlive a power cut."""
    for parent in (*CGROUPS.glob(tag), *CGROUPS.glob(f"*/{tag}")):
        for folder, _, _ in os.walk(parent, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


@contextlib.contextmanager
def own_network(subnet: str | None) -> Iterator[Network]:
    """Hold the given subnet, or the first free one, until the end; clean up after killed runs."""
    LOCKS.mkdir(exist_ok=True)
    for leftover in sorted(LOCKS.iterdir()):
        with open_locked(leftover.name) as lock:
            if lock:
                Network(leftover.name).remove()
    for candidate in [subnet] if subnet else [f"10.77.{number}" for number in range(200)]:
        with open_locked(candidate) as lock:
            if lock:
                network = Network(candidate)
                try:
                    network.create()
                    yield network
                finally:
                    network.remove()
                return
    raise RuntimeError(f"another lab holds {subnet or 'every subnet'}")


@contextlib.contextmanager
def own_folder(network: Network, folder: Path) -> Iterator[None]:
    """Hold an empty folder for a lab's disks until the end.

    It is in memory: on a disk, to delete what Docker keeps would take longer than many a test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        raise RuntimeError(f"another lab uses {folder}")
    sh("mount", "-t", "tmpfs", "-o", "mode=755", network.tag, folder)
    try:
        yield
    finally:
        sh("umount", "--lazy", folder)
        folder.rmdir()


@contextlib.contextmanager
def open_locked(subnet: str) -> Iterator[IO[str] | None]:
    """Yield the lock of a subnet, or None where a living process holds it."""
    with (LOCKS / subnet).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
