"""One test host: a network namespace with a disk, sshd and, for some, Docker of its own."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.lab.network import Network, sh

INIT = Path(__file__).with_name("host_init.sh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = ("/usr/sbin/sshd", "sshd:", "dockerd ", "containerd ", "cron ", "CRON ")
LAYERS = "var/lib/docker/overlay2"
OURS = re.compile(r"raycluster|rc-[0-9a-f]{8}")
SERVICES = (f"/bin/bash {INIT}", "sleep infinity", "ps ", *DAEMONS)

Kind = Literal["docker", "native"]


class UnsupportedError(Exception):
    """This machine's kernel lacks what a test asks for."""


READY_S = 120.0
"""Seconds for a host's services to answer, while the others' containers start too."""


def wait_for(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    """Return once the condition holds; raises TimeoutError after `timeout` seconds.

    It pauses as long as a look took: some run the whole program, and would take the processors from
    what is waited for.
    """
    began = time.monotonic()
    end = began + timeout
    while not condition():
        now = time.monotonic()
        if now > end:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(min(max(0.05, now - began), 2))
        began = time.monotonic()


@dataclass
class Host:
    """One host: users root, ubuntu (in group docker where there is Docker) and outsider."""

    name: str
    kind: Kind
    number: int
    network: Network
    folder: Path
    volumes: Sequence[Path]
    ssh_port: int = 22
    process: subprocess.Popen[bytes] | None = None
    made: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def address(self) -> str:
        """The host's IPv4 address."""
        return self.network.ipv4(self.number)

    @property
    def address6(self) -> str:
        """The host's IPv6 address."""
        return self.network.ipv6(self.number)

    @property
    def pid(self) -> int:
        """The host's first process, as this machine counts."""
        if self.process is None:
            raise RuntimeError(f"{self.name} is off")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_for(children.read_text, f"{self.name}'s first process")
        return int(children.read_text())

    @property
    def host_key(self) -> Path:
        """The private half of what the host identifies itself with."""
        return self.folder / "disk/changes/etc/ssh/lab_host_key"

    @property
    def known_hosts_line(self) -> str:
        """The host's true key, under address, IPv6 address and name."""
        names = [self.address, self.address6, self.name]
        if self.ssh_port != 22:
            names = [f"[{name}]:{self.ssh_port}" for name in names]
        return f"{','.join(names)} {self.host_key.with_suffix('.pub').read_text()}"

    def power_on(self) -> None:
        """Start the host with the disk that it has; returns when its services answer."""
        self.start()
        self.wait_ready()

    def start(self) -> None:
        """Start the host and return at once."""
        self.network.add_host(self.number)
        enter = ("nsenter", f"--net=/run/netns/{self.network.name(self.number)}")
        apart = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
        cgroup = f"/{self.network.tag}/{self.name}"
        arguments = (self.folder, self.name, self.kind, self.ssh_port, cgroup, *self.volumes)
        with (self.folder / "init.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*enter, *apart, str(INIT), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once sshd and, where there is one, Docker answer."""
        wait_for(self._sshd_answers, f"{self.name}'s sshd: see {self.folder}/init.log", READY_S)
        if self.kind == "docker":
            docker, daemon = ("docker", "version"), f"{self.name}'s Docker daemon"
            wait_for(lambda: self.run(docker).returncode == 0, daemon, READY_S)

    def power_off(self) -> None:
        """Cut the power: nothing on the host gets to say goodbye. Its disk stays."""
        if self.process is not None:
            sh("ip", "link", "set", self.network.name(self.number), "down")
            self.process.kill()
            self.network.remove_host(self.number)
            self.process.wait()
            self.process = None

    def partition(self, *, drop: bool = True, peers: Sequence[Host] = ()) -> None:
        """Cut the host from `peers`, or from everyone: packets vanish, or the cable is unplugged.

        An unplugged cable (`drop=False`) cuts from everyone.
        """
        if not drop:
            sh("ip", "link", "set", self.network.name(self.number), "down")
            return
        self._nft("add table inet partition; flush table inet partition")
        for chain, side in (("input", "saddr"), ("output", "daddr")):
            rules = [f"type filter hook {chain} priority -300"]
            if peers:
                rules.append(f"ip {side} {{ {', '.join(peer.address for peer in peers)} }} drop")
                rules.append(f"ip6 {side} {{ {', '.join(peer.address6 for peer in peers)} }} drop")
            else:
                rules.append(f"{'iif' if chain == 'input' else 'oif'} != lo drop")
            body = "\n".join(rules)
            self._nft(f"table inet partition {{\nchain {chain} {{\n{body}\n}}\n}}\n")

    def heal(self) -> None:
        """End any partition."""
        sh("ip", "link", "set", self.network.name(self.number), "up")
        self._nft("add table inet partition; delete table inet partition")

    def latency(self, milliseconds: float, *, loss: float = 0.0) -> None:
        """Delay what the host sends, and lose `loss` percent; 0 and 0 end it."""
        change = "replace" if milliseconds or loss else "delete"
        netem = ("netem", "delay", f"{milliseconds}ms", "loss", f"{loss}%")
        try:
            self._tc("qdisc", change, "dev", "eth0", "root", *netem)
        except RuntimeError as error:
            raise UnsupportedError(f"no netem in this kernel: {error}") from error

    def run(
        self, argv: Sequence[str], *, user: str = "root", stdin: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host's namespaces, past SSH."""
        done = subprocess.run(
            self.enter(*argv, user=user),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, err = (part.decode(errors="replace") for part in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def enter(self, *argv: str, user: str = "root") -> list[str]:
        """Return the command that runs `argv` in the host's namespaces."""
        home = "/root" if user == "root" else f"/home/{user}"
        space = ("nsenter", "--all", "--target", str(self.pid))
        env = ("env", "-i", f"PATH={PATH}", f"HOME={home}", f"USER={user}")
        become = ("setpriv", "--init-groups", f"--reuid={user}", f"--regid={user}")
        return [*space, *env, *become, *argv]

    def check(self, *argv: str, timeout: float = 60) -> str:
        """Run a command that must succeed and return what it wrote."""
        done = self.run(argv, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {shlex.join(argv)}: {done.stderr or done.stdout}")
        return done.stdout

    def stop_service(self, service: Literal["sshd", "dockerd", "cron"]) -> None:
        """End a service, and with sshd every session, as its package's upgrade might."""
        self.run(("pkill", "-x", service))
        wait_for(lambda: self.run(("pgrep", "-x", service)).returncode, f"the end of {service}")

    def start_service(self, service: Literal["sshd", "dockerd", "cron"]) -> None:
        """Start a stopped service again; returns when the host's services answer."""
        self.check("/bin/bash", "-c", f"setsid /run/start-{service} </dev/null &>/dev/null &")
        self.wait_ready()

    def containers(self) -> list[str]:
        """Return the names of all containers, stopped ones included."""
        return self.check("docker", "ps", "--all", "--format", "{{.Names}}").split()

    def processes(self) -> list[str]:
        """Return the command lines of all processes but those that make it a host."""
        lines = self.check("ps", "-e", "-o", "args=", "-ww").splitlines()
        return [line for line in lines if line.strip() and not line.startswith(SERVICES)]

    def files(self) -> frozenset[str]:
        """Return the files that were written to the host's disk since it was made.

        Of logs and of Docker's own only those that carry our name.
        """
        return self._disk() - self.made

    def crontabs(self) -> list[str]:
        """Return every line of every user's crontab."""
        folder = self.folder / "disk/var/spool/cron/crontabs"
        return [line for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]

    def traces(self) -> tuple[object, ...]:
        """Return what a run could leave, from processes and files to networks of Docker.

        Semaphores are left out: what is killed from outside with all that watch it leaves them.
        """
        places = "ls -d /tmp/r* /dev/shm/[!s]* /home/*/.raycluster* /root/.raycluster*"
        folders = self.run(("sh", "-c", places)).stdout
        found = (sorted(self.processes()), self.files(), folders, self.crontabs())
        if self.kind != "docker" or self.run(("docker", "version")).returncode:
            return found
        volumes = self.check("docker", "volume", "ls", "-q").split()
        networks = self.check("docker", "network", "ls", "--format", "{{.Name}}").split()
        return (*found, self.containers(), volumes, sorted(networks))

    def _disk(self) -> frozenset[str]:
        ignored = ("var/log/", "var/lib/docker/")
        found = set()
        for top in ("changes", "tmp", "home", "root", "var/spool/cron/crontabs"):
            base = self.folder / "disk" / top
            prefix = "" if top == "changes" else f"{top}/"
            for folder, _, names in os.walk(base):
                inside = prefix + os.path.relpath(folder, base).removeprefix(".").lstrip("/")
                paths = (f"{inside.rstrip('/')}/{name}".lstrip("/") for name in names)
                found |= {f"/{path}" for path in paths if not path.startswith(ignored)}
        return frozenset(found | self._named())

    def _named(self) -> set[str]:
        """Return what is ours by name where others write too, Docker's layers apart."""
        found = set()
        for top in ("var/log", "var/lib/docker"):
            for folder, folders, names in os.walk(self.folder / "disk" / top):
                inside = os.path.relpath(folder, self.folder / "disk")
                found |= {f"/{inside}/{n}" for n in (*folders, *names) if OURS.match(n)}
                if inside == LAYERS:
                    folders.clear()
        return found

    def _sshd_answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"{self.name}: {(self.folder / 'init.log').read_text()[-1000:]}")
        try:
            with socket.create_connection((self.address, self.ssh_port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _nft(self, rules: str) -> None:
        sh("ip", "netns", "exec", self.network.name(self.number), "nft", "-f", "-", stdin=rules)

    def _tc(self, *argv: str) -> None:
        sh("ip", "netns", "exec", self.network.name(self.number), "tc", *argv)
