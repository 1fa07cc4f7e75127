"""An sshd of the tests' own, on 127.0.0.1, with its keys and configuration in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from raycluster.hosts.transports.ssh import SshOptions
from tests.ports import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SECONDS = 60.0


def wait_for(met: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Return as soon as a condition is met."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair; an existing one is kept."""
    if not path.exists():
        command = ("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path))
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@dataclass(frozen=True)
class Login:
    """The home and login shell of this user to a server alone; `without` leaves out of /usr/bin.

    Where it is `expired`, the password has to be changed. With `busybox`, that takes the place of
    all programs of /usr/bin that it has. With `tmp`, /tmp is a link to a folder of that path.
    `mounts` are lines for a shell, which may change what is mounted. Needs root.
    """

    home: Path
    shell: str
    without: tuple[str, ...] = ()
    expired: bool = False
    busybox: bool = False
    tmp: str = ""
    mounts: tuple[str, ...] = ()

    def entering(self, folder: Path) -> tuple[str, ...]:
        """Return the beginning of a command that runs where the login is so."""
        user = getpass.getuser()
        lines = Path("/etc/passwd").read_text().splitlines()
        own = next(line for line in lines if line.startswith(f"{user}:")).split(":")
        changed = ":".join((*own[:5], str(self.home), self.shell))
        passwd = folder / "passwd"
        passwd.write_text("\n".join([changed, *lines]) + "\n")
        steps = ["set -e", f"mount --bind {passwd} /etc/passwd"]
        if self.expired:
            shadow = folder / "shadow"
            shadow.write_text(f"{user}:*:0:0:99999:7:::\n")
            steps.append(f"mount --bind {shadow} /etc/shadow")
        if self.without or self.busybox:
            steps += self._programs(folder / "over")
        steps += self.mounts
        if not self.tmp:
            return ("unshare", "--mount", "sh", "-c", "; ".join([*steps, 'exec "$@"']), "sh")
        steps += self._root(folder / "root")
        return ("unshare", "--mount", "sh", "-c", "\n".join(steps), "sh")

    def _programs(self, over: Path) -> list[str]:
        over.mkdir()
        upper = f"{over}/upper"
        steps = [f"mount -t tmpfs none {over}", f"mkdir {upper} {over}/work"]
        if self.busybox:
            listed = subprocess.run(
                ("busybox", "--list"), check=True, capture_output=True, text=True
            )
            names = [name for name in listed.stdout.split() if Path("/usr/bin", name).exists()]
            steps += [f"ln -s busybox {upper}/{name}" for name in names]
        steps += [f"mknod {upper}/{program} c 0 0" for program in self.without]
        layers = f"lowerdir=/usr/bin,upperdir={upper},workdir={over}/work"
        return [*steps, f"mount -t overlay none -o {layers} /usr/bin"]

    def _root(self, root: Path) -> list[str]:
        """Return how to begin in a root with the folders of this one, where /tmp is a link."""
        root.mkdir()
        tmp = shlex.quote(self.tmp)
        return [
            f"mount -t tmpfs none {root}",
            "for each in /*; do",
            f'  if [ "$each" = /tmp ]; then ln -s {tmp} {root}/tmp',
            f'  elif [ -L "$each" ]; then ln -s "$(readlink "$each")" "{root}$each"',
            f'  elif [ -d "$each" ]; then mkdir "{root}$each"; mount --rbind "$each" "{root}$each"',
            "  fi",
            "done",
            f"mkdir {root}{tmp}; mount --bind /tmp {root}{tmp}",
            f'exec chroot {root} "$@"',
        ]


@dataclass
class Sshd:
    """A server; `extra` are lines for its sshd_config, the first of a kind winning."""

    folder: Path
    extra: str = ""
    host_keys: tuple[str, ...] = ("ed25519",)
    port: int = field(default_factory=free_port)
    child: subprocess.Popen[bytes] | None = None
    login: Login | None = None

    def start(self) -> Sshd:
        """Start it, and return once it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [make_key(self.folder / f"host_{kind}", kind) for kind in self.host_keys]
        make_key(self.folder / "client")
        authorized = self.folder / "authorized_keys"
        authorized.write_bytes((self.folder / "client.pub").read_bytes())
        self._write_known_hosts(keys)
        config = self.folder / "sshd_config"
        config.write_text(
            f"{self.extra}\nListenAddress 127.0.0.1\nPort {self.port}\nPidFile none\n"
            f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\nMaxStartups 100\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nLogLevel VERBOSE\n"
            + "".join(f"HostKey {key}\n" for key in keys)
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command: tuple[str, ...] = (
            str(SSHD),
            "-D",
            "-E",
            str(self.folder / "log"),
            "-f",
            str(config),
        )
        if self.login is not None:
            command = (*self.login.entering(self.folder), *command)
        self.child = subprocess.Popen(command)
        wait_for(self._answers, "sshd answers")
        return self

    def _write_known_hosts(self, keys: list[Path]) -> None:
        lines = [" ".join(Path(f"{key}.pub").read_text().split()[:2]) for key in keys]
        known = "".join(f"[127.0.0.1]:{self.port} {line}\n" for line in lines)
        (self.folder / "known_hosts").write_text(known)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End the server; connections that are open go on."""
        if self.child is not None:
            self.child.terminate()
            self.child.wait()
            self.child = None

    def workers(self) -> list[int]:
        """Return the processes that serve connections, and what runs in them."""
        assert self.child is not None
        found = [self.child.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += [int(child) for child in text.split()]
        return found[1:]

    def signal_workers(self, sign: signal.Signals) -> None:
        """Send a signal to everything that serves connections."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)

    def options(self, **changes: object) -> SshOptions:
        """Return how to log in here, with changes."""
        base = SshOptions(
            host="127.0.0.1",
            port=self.port,
            user=getpass.getuser(),
            identity_file=str(self.folder / "client"),
            known_hosts=str(self.folder / "known_hosts"),
            config_file="none",
            connect_timeout=5.0,
        )
        return replace(base, **changes)  # type: ignore[arg-type]

    def fingerprint(self, kind: str = "ed25519") -> str:
        """Return what ssh-keygen says of a host key."""
        path = str(self.folder / f"host_{kind}.pub")
        said = subprocess.run(("ssh-keygen", "-lf", path), check=True, capture_output=True)
        return said.stdout.decode().split()[1]


@contextlib.contextmanager
def slow_line(port: int, delay: float) -> Iterator[Line]:
    """Yield a line to a port, with a delay in seconds each way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = Line(int(server.getsockname()[1]))
        threading.Thread(target=_accept, args=(server, port, delay, line), daemon=True).start()
        yield line


@dataclass
class Line:
    """A port that leads to another one; `trips` counts answers that were waited for."""

    port: int
    trips: int = 0
    answered: bool = True

    def carried(self, up: bool) -> None:
        """Count what is sent after something came."""
        self.trips += up and self.answered
        self.answered = not up


def _accept(server: socket.socket, port: int, delay: float, line: Line) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for source, sink, up in ((near, far, True), (far, near, False)):
                told = (source, sink, delay, lambda up=up: line.carried(up))
                threading.Thread(target=_carry, args=told, daemon=True).start()


def _carry(
    source: socket.socket, sink: socket.socket, delay: float, carried: Callable[[], None]
) -> None:
    """Carry bytes late. Only fit for dialogues: what comes meanwhile waits for the next turn."""
    with source, sink, contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            time.sleep(delay)
            carried()
            sink.sendall(data)
