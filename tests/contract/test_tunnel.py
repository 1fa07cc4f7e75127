"""Both ways of forwarding, against a real sshd: what goes in comes out, and breaks are told."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

import pytest

from raycluster.core.errors import AuthError, HostError, PortInUseError, UnreachableError
from raycluster.core.interfaces import Transport
from raycluster.tunnel.channels import ChannelForwarder
from raycluster.tunnel.keep import Route, keep
from raycluster.tunnel.ports import Forward, choose_ports
from raycluster.tunnel.system import SystemForwarder
from tests.ports import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
if SSHD is None or shutil.which("ssh") is None:
    pytest.skip("needs OpenSSH's client and server", allow_module_level=True)

SECONDS = 20.0


def wait_for(met: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


@dataclass
class Sshd:
    """An sshd of the test's own, with its keys and everything in one folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    child: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        for key in ("host", "client", "stranger"):
            path = str(self.folder / key)
            subprocess.run(("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", path), check=True)
        public = (self.folder / "host.pub").read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")
        shutil.copy(self.folder / "client.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nPidFile none\nMaxSessions 2\n"
        )

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log, config = self.folder / "log", self.folder / "sshd_config"
        self.child = subprocess.Popen((str(SSHD), "-D", "-E", str(log), "-f", str(config)))
        wait_for(self.answers, "sshd answers")

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End sshd and every connection that it serves, as a reboot does."""
        if self.child is None:
            return
        for pid in (*descendants(self.child.pid), self.child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()
        self.child = None

    def command(self, key: str = "client") -> tuple[str, ...]:
        options = {
            "IdentityFile": self.folder / key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        return ("ssh", "-F", "none", *flags, "-p", str(self.port), "127.0.0.1")


def descendants(pid: int) -> list[int]:
    """The processes below this one, the farthest first."""
    found = subprocess.run(
        ("ps", "-o", "pid=", "--ppid", str(pid)), stdout=subprocess.PIPE, check=False
    )
    children = [int(word) for word in found.stdout.split()]
    return [deep for child in children for deep in (*descendants(child), child)]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path)
    server.prepare()
    server.start()
    yield server
    server.kill()


Handler = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], int]]:
    """Starts servers that give each connection to a handler, in a thread; returns their ports."""
    with ExitStack() as stack:
        yield functools.partial(_serve, stack)


def _serve(stack: ExitStack, handler: Handler) -> int:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def handle(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            handler(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                Thread(target=handle, args=(client,), daemon=True).start()

    thread = Thread(target=accept, daemon=True)
    thread.start()
    stack.callback(thread.join, SECONDS)
    stack.callback(listener.close)
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return int(listener.getsockname()[1])


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def count_to_the_end(client: socket.socket) -> None:
    """Answer only when the client has said all: needs a half-close."""
    total = 0
    while data := client.recv(65536):
        total += len(data)
    client.sendall(b"%d" % total)


def pour(client: socket.socket) -> None:
    """Send without end."""
    block = b"x" * 65536
    while True:
        client.sendall(block)


Way = Callable[..., AbstractContextManager[object]]


@pytest.fixture(params=["system", "channels over ssh", "channels on this machine"])
def forwarder(request: pytest.FixtureRequest) -> Way:
    """Makes a forwarder of each kind from its forwards."""
    if request.param == "channels on this machine":
        from raycluster.hosts.transports.local import LocalTransport

        return functools.partial(ChannelForwarder, LocalTransport("here"))
    server: Sshd = request.getfixturevalue("sshd")
    if request.param == "system":
        return functools.partial(SystemForwarder, server.command(), host="head")
    return functools.partial(over_ssh, server)


@contextlib.contextmanager
def over_ssh(server: Sshd, forwards: tuple[Forward, ...]) -> Iterator[None]:
    transport = open_transport(server)
    with contextlib.closing(transport), ChannelForwarder(transport, forwards):
        yield


def open_transport(server: Sshd) -> Transport:
    from raycluster.hosts.transports.ssh import SshOptions, open_ssh

    options = SshOptions(
        "127.0.0.1",
        port=server.port,
        identity_file=str(server.folder / "client"),
        known_hosts=str(server.folder / "known_hosts"),
        config_file="none",
    )
    return open_ssh("head", options)


def to(port: int, name: str = "API") -> tuple[Forward, ...]:
    return choose_ports([Forward(name, ("127.0.0.1", port), free_port())])


def connect(forward: Forward) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", forward.port), SECONDS)
    client.settimeout(SECONDS)
    return client


def ask(forward: Forward, question: bytes = b"hello") -> bytes:
    """Send, end our direction, and return the whole answer."""
    with connect(forward) as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def works(forward: Forward) -> bool:
    try:
        return ask(forward) == b"hello"
    except OSError:
        return False


def give_reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_request_goes_through(forwarder: Way, serve: Callable[[Handler], int]) -> None:
    forwards = to(serve(echo))
    with forwarder(forwards):
        assert ask(forwards[0], b"hello" * 100_000) == b"hello" * 100_000


def test_all_forwards_lead_to_their_own_port(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    forwards = (*to(serve(echo), "API"), *to(serve(count_to_the_end), "Grafana"))
    with forwarder(forwards):
        assert [ask(forward) for forward in forwards] == [b"hello", b"5"]


def test_half_close_is_kept(forwarder: Way, serve: Callable[[Handler], int]) -> None:
    forwards = to(serve(count_to_the_end))
    with forwarder(forwards):
        assert ask(forwards[0], b"x" * 3_000_000) == b"3000000"


def test_a_taken_local_port_is_an_error_that_names_it(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    forwards = to(serve(echo))
    with (
        socket.create_server(("127.0.0.1", forwards[0].port)),
        pytest.raises(PortInUseError, match=str(forwards[0].port)),
        forwarder(forwards),
    ):
        pass


def test_a_slow_reader_holds_up_only_itself(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    poured, fast = to(serve(pour))[0], to(serve(echo))[0]
    with forwarder((poured, fast)), connect(poured), connect(poured):
        began = time.monotonic()
        answers = [ask(fast, b"y" * 500_000) for _ in range(5)]
        assert all(len(answer) == 500_000 for answer in answers)
        assert time.monotonic() - began < SECONDS / 2


def test_a_closed_client_ends_an_endless_answer(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    ended = Event()

    def pour_and_tell(client: socket.socket) -> None:
        try:
            pour(client)
        finally:
            ended.set()

    forwards = to(serve(pour_and_tell))
    with forwarder(forwards):
        with connect(forwards[0]) as client:
            assert client.recv(1000)
        assert ended.wait(SECONDS)


def test_a_refusing_remote_ends_the_client_at_once_and_nothing_else(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    closed, good = to(free_port())[0], to(serve(echo))[0]
    with forwarder((closed, good)):
        assert not works(closed)
        assert works(good)


def test_two_thousand_short_connections_with_resets_leave_it_alive(
    forwarder: Way, serve: Callable[[Handler], int]
) -> None:
    forwards = to(serve(echo))
    with forwarder(forwards):
        for number in range(2000):
            client = connect(forwards[0])
            client.sendall(b"x" * (number % 7) * 1000 or b"y")
            if number % 3 == 0:
                assert client.recv(1)
            give_reset(client) if number % 2 else client.close()
        wait_for(lambda: works(forwards[0]), "an answer after the resets")


def test_the_client_of_a_cut_answer_gets_an_error(
    sshd: Sshd, serve: Callable[[Handler], int]
) -> None:
    """In this process only: the system's ssh ends, and with it its sockets, in its own manner."""
    forwards = to(serve(pour))
    with over_ssh(sshd, forwards), connect(forwards[0]) as client:
        assert client.recv(1000)
        sshd.kill()
        with pytest.raises(ConnectionResetError):
            while client.recv(65536):
                pass


def test_closing_the_forwarder_resets_what_is_open(serve: Callable[[Handler], int]) -> None:
    from raycluster.hosts.transports.local import LocalTransport

    forwards = to(serve(pour))
    with ExitStack() as stack:
        with ChannelForwarder(LocalTransport("here"), forwards):
            reader, stuck = connect(forwards[0]), connect(forwards[0])
            stack.enter_context(reader)
            stack.enter_context(stuck)
            assert reader.recv(1000)
        for client in (reader, stuck):
            with pytest.raises(ConnectionResetError):
                while client.recv(65536):
                    pass


class Kept:
    """`keep` in a thread, and the lines that it told."""

    def __init__(self, route: Route, forwards: tuple[Forward, ...]) -> None:
        self.lines: list[str] = []
        self.stop = Event()
        self.error: HostError | None = None
        self._lock = Lock()
        self._thread = Thread(target=self._keep, args=(route, forwards), daemon=True)

    def _keep(self, route: Route, forwards: tuple[Forward, ...]) -> None:
        try:
            keep(route, forwards, self.lines.append, self.stop)
        except HostError as error:
            self.error = error

    def __enter__(self) -> Kept:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


def routes(server: Sshd, way: str) -> Route:
    if way == "system":
        return Route("head", server.command())
    return Route("head", open_transport=functools.partial(open_transport, server))


@pytest.mark.parametrize("way", ["system", "channels"])
def test_a_restarted_sshd_is_connected_again_on_the_same_port(
    way: str, sshd: Sshd, serve: Callable[[Handler], int]
) -> None:
    forwards = to(serve(echo))
    with Kept(routes(sshd, way), forwards) as kept:
        wait_for(lambda: works(forwards[0]), "the first answer")
        sshd.kill()
        wait_for(lambda: len(kept.lines) == 2, "the loss is told")
        sshd.start()
        wait_for(lambda: works(forwards[0]), "an answer after the restart")
        wait_for(lambda: len(kept.lines) == 3, "the return is told")
    assert kept.error is None
    assert f"->  head:{forwards[0].target}" in kept.lines[0]
    assert kept.lines[1].startswith("connection lost (")
    assert kept.lines[2].startswith("connected again after ")


def test_a_first_connection_that_fails_is_an_error(sshd: Sshd) -> None:
    sshd.kill()
    with pytest.raises(UnreachableError, match="refused"):
        keep(Route("head", sshd.command()), to(80), print, Event())


def test_a_refused_key_is_an_error_that_says_so(sshd: Sshd) -> None:
    with pytest.raises(AuthError, match=r"head: .*Permission denied"):
        keep(Route("head", sshd.command("stranger")), to(80), print, Event())


def test_without_a_silent_login_of_the_systems_ssh_the_transport_forwards(
    sshd: Sshd, serve: Callable[[Handler], int]
) -> None:
    forwards = to(serve(echo))
    transport = functools.partial(open_transport, sshd)
    with Kept(Route("head", sshd.command("stranger"), transport), forwards) as kept:
        wait_for(lambda: works(forwards[0]), "an answer")
        assert "Permission denied" in kept.lines[0]
        assert not [pid for pid in descendants(os.getpid()) if runs_ssh(pid)]
    assert kept.error is None


def runs_ssh(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ssh\0")
    return False


def test_this_machine_needs_no_tunnel() -> None:
    lines: list[str] = []
    keep(Route("head"), [Forward("API", ("127.0.0.1", 8000))], lines.append, Event())
    assert lines == ["API  http://127.0.0.1:8000  (on this machine)"]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder of the test's own whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


PROGRAM = """
import sys
from raycluster.tunnel.run import run
from raycluster.tunnel.keep import Route
from raycluster.tunnel.ports import Forward
port, *command = sys.argv[1:]
run(Route("head", tuple(command)), [Forward("API", ("127.0.0.1", int(port)))],
    lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize(
    ("ending", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)]
)
def test_however_the_command_ends_no_process_and_no_port_stays(
    ending: signal.Signals,
    status: int,
    sshd: Sshd,
    serve: Callable[[Handler], int],
    short_tmp: Path,
) -> None:
    remote = serve(echo)
    program = (sys.executable, "-c", PROGRAM, str(remote), *sshd.command())
    environment = {**os.environ, "TMPDIR": str(short_tmp)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        local = Forward("API", ("127.0.0.1", int(line.split(":")[2].split()[0])))
        assert local.port != remote  # that one is taken by the server itself
        assert works(local)
        below = descendants(child.pid)
        assert below, "there is an ssh"
        assert list(short_tmp.glob("rct-*"))
        with connect(local):  # ssh alone would wait for the end of this
            child.send_signal(ending)
            assert child.wait(SECONDS) == status
            wait_for(lambda: not any(is_alive(pid) for pid in below), "ssh has ended")
    wait_for(lambda: not list(short_tmp.glob("rct-*")), "the folder with the socket is gone")
    with pytest.raises(ConnectionRefusedError):
        connect(local)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
