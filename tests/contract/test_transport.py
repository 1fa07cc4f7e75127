"""What every Transport does, against this machine by itself and against a real sshd."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycluster.core.errors import AnswerError, CommandError, HostError
from raycluster.core.interfaces import Address, ByteStream, Shell, Transport
from raycluster.hosts.transports.local import LocalTransport
from raycluster.hosts.transports.ssh import open_ssh
from raycluster.hosts.transports.ssh_system import open_system
from tests.contract.odd_hosts import BARE, EXPORTS, NOISY, OTHERS, OddHost
from tests.contract.sshd import SSHD, Sshd, wait_for
from tests.ports import free_port

HOSTS = {"ssh": None, "noisy": NOISY, "bare": BARE}


@pytest.fixture(scope="module")
def sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Sshd]]:
    """Return a function for servers that all tests of this file share: one of each kind."""
    if SSHD is None:
        pytest.skip("needs OpenSSH's server")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def one(kind: str) -> Sshd:
            folder, host = tmp_path_factory.mktemp(kind), HOSTS[kind]
            server = (Sshd(folder) if host is None else host.sshd(folder)).start()
            stack.callback(server.stop)
            return server

        yield one


@pytest.fixture(params=["local", *HOSTS, "system"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Yield one kind of transport after the other."""
    if request.param == "local":
        opened: Transport = LocalTransport("here")
    elif request.param == "system":
        opened = open_system("gpu-1", request.getfixturevalue("sshds")("ssh").options())
    else:
        opened = open_ssh("gpu-1", request.getfixturevalue("sshds")(request.param).options())
    with contextlib.closing(opened):
        yield opened


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_it_is_a_shell_with_an_address(transport: Transport) -> None:
    assert isinstance(transport, Shell)
    assert transport.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("no-such-one", 127),
    ],
)
def test_run_returns_how_it_ended(transport: Transport, script: str, status: int) -> None:
    done = transport.run(("sh", "-c", f"echo out; echo err >&2; {script}"))
    assert done.exit_code == status
    assert done.stdout == b"out\n"
    assert done.stderr.startswith(b"err\n")


def test_a_program_that_is_not_there_ends_as_in_a_shell(transport: Transport) -> None:
    assert transport.run(("raycluster-has-no-such-program",)).exit_code == 127


ODD = ("", "a b", "$(id)", "`id`", "'", '"', "\\", "a\\\\b", "\\'", "a\nb", "*", "~", "=ls", "!x")
ODDER = ("-n", "#c", "a;b", "été", "%s", "{a,b}", "$HOME", "&", "\t", "'\\\\'", "\n", "A=b", "$'x'")


@pytest.mark.parametrize("word", [*ODD, *ODDER])
def test_words_arrive_as_they_are(transport: Transport, word: str) -> None:
    done = transport.run(("printf", "%s|", word, word))
    assert done.stdout.decode() == f"{word}|{word}|"


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_input_and_output_of_any_size(transport: Transport, size: int) -> None:
    content = os.urandom(size)
    assert transport.run(("cat",), input=content).stdout == content


def test_output_larger_than_any_buffer_on_both_channels(transport: Transport) -> None:
    script = "head -c 6000000 /dev/zero; head -c 6000000 /dev/zero >&2"
    done = transport.run(("sh", "-c", script))
    assert (len(done.stdout), len(done.stderr)) == (6_000_000, 6_000_000)


def test_input_that_is_not_read_is_no_error(transport: Transport) -> None:
    assert transport.run(("true",), input=bytes(8_000_000)).exit_code == 0


def test_a_command_that_writes_without_end_is_ended(transport: Transport) -> None:
    with pytest.raises(AnswerError, match="cat sent more than 32 MiB"):
        transport.run(("cat", "/dev/zero"))


def test_a_command_that_never_pauses_is_ended_in_time(transport: Transport) -> None:
    with pytest.raises(HostError, match="sh did not finish within 1 s"):
        transport.run(("sh", "-c", "while :; do echo; done"), timeout=1)


def test_a_stream_that_falls_silent_is_ended(transport: Transport) -> None:
    seen = []
    with pytest.raises(HostError, match="sh had no output for 1 s"):
        for piece in transport.stream(("sh", "-c", "echo a; exec sleep 600"), quiet=1):
            seen.append(piece)
    assert seen == [("stdout", b"a\n")]


def test_env_is_added(transport: Transport) -> None:
    done = transport.run(("sh", "-c", 'printf "%s" "$A:$PATH"'), env={"A": "x 'y'\n$z"})
    name, _, path = done.stdout.decode().partition(":")
    assert name == "x 'y'\n$z"
    assert path


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export here what hosts' start-up files export."""
    for name, value in EXPORTS.items():
        if name != "LD_PRELOAD":  # of whatever the tests start themselves, too
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("exported")
def test_whatever_a_login_exports_commands_find_a_clean_environment(transport: Transport) -> None:
    said = transport.run(("env", "-0")).stdout.decode()
    found = dict(line.split("=", 1) for line in said.split("\0") if line)
    assert not {name for name in found if name in EXPORTS and name != "LC_ALL"}
    assert not {name for name in found if name.startswith(("RAY_", "LC_M", "LANG"))}
    assert (found["LC_ALL"], found["PYTHONUTF8"]) == ("C", "1")
    assert transport.run(("printf", "%.1f", "1.5")).stdout == b"1.5"
    read = 'import sys; print(sys.stdin.read() + "\u00e9")'
    done = transport.run(("python3", "-c", read), input="ö".encode())
    assert (done.stdout.decode(), done.stderr) == ("öé\n", b"")


def test_a_relative_path_is_one_below_the_home_folder(transport: Transport) -> None:
    name = f"raycluster-test-{os.getpid()}/a b"
    transport.put(name, b"\0content")
    done = transport.run(("sh", "-c", 'cat "$HOME/$1" && rm -r "${1%/*}"', "sh", name))
    assert (done.stdout, done.stderr, done.exit_code) == (b"\0content", b"", 0)


@pytest.mark.parametrize("host", OTHERS, ids=lambda host: host.shell)
def test_any_login_shell_does(host: OddHost, tmp_path: Path) -> None:
    server = host.sshd(tmp_path).start()
    try:
        with contextlib.closing(open_ssh("gpu-1", server.options())) as transport:
            for word in ODD:
                done = transport.run(("printf", "%s|", word), env={"A": word})
                assert (done.stdout.decode(), done.stderr) == (f"{word}|", b"")
            for content in (b"\0\xff!", os.urandom(200_000)):
                assert transport.run(("cat",), input=content).stdout == content
                transport.put("a b/c", content)
                pieces = list(transport.stream(("cat", "a b/c")))
                assert b"".join(data for _, data in pieces) == content
                assert {channel for channel, _ in pieces} == {"stdout"}
            assert transport.run(("sh", "-c", "echo no >&2; exit 3")).exit_code == 3
    finally:
        server.stop()


def test_a_timeout_ends_the_command_and_its_children(transport: Transport, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"trap '' TERM HUP; sleep 300 & echo $$ $! > {note}; wait; sleep 300"
    for seconds in (1, 5, 25):  # until it had begun within them
        with pytest.raises(HostError, match=f"sh did not finish within {seconds} s"):
            transport.run(("sh", "-c", script), timeout=seconds)
        if note.exists() and note.read_text():
            break
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(alive(pid) for pid in pids), "the command is gone")


def test_stream_yields_as_it_comes_and_raises_the_status(transport: Transport) -> None:
    script = "echo one; read wait < {}; echo two >&2; exit 3"
    with _fifo() as fifo:
        stream = transport.stream(("sh", "-c", script.format(fifo)))
        assert next(stream) == ("stdout", b"one\n")
        fifo.write_text("go\n")
        assert next(stream) == ("stderr", b"two\n")
        with pytest.raises(CommandError) as caught:
            next(stream)
    assert caught.value.status == 3


@contextlib.contextmanager
def _fifo() -> Iterator[Path]:
    path = Path(f"/tmp/raycluster-{os.getpid()}-{threading.get_ident()}")
    os.mkfifo(path)
    try:
        yield path
    finally:
        path.unlink()


def test_a_stream_that_ends_well_just_ends(transport: Transport) -> None:
    pieces = list(transport.stream(("head", "-c", "3000000", "/dev/zero")))
    assert sum(len(data) for _, data in pieces) == 3_000_000
    assert {channel for channel, _ in pieces} == {"stdout"}


def test_a_stream_has_no_input(transport: Transport) -> None:
    assert list(transport.stream(("cat",))) == []


def test_closing_a_stream_ends_the_command(transport: Transport) -> None:
    stream = transport.stream(("sh", "-c", "echo $$; sleep 300 & wait"))
    pid = int(next(stream)[1])
    assert alive(pid)
    began = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: not alive(pid), "the command is gone")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_put_writes_content_and_mode(transport: Transport, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "new folder" / "it's" / "file"
    for content in (b"old", b"", os.urandom(3_000_000)):
        transport.put(str(path), content, mode=mode)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [stat.S_IMODE(each.stat().st_mode) for each in path.parents[:2]] == [0o700, 0o700]
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_reader_never_sees_half_a_file(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([digit]) * 400_000 for digit in range(5)}
    transport.put(str(path), bytes(400_000))
    seen: set[bytes] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        transport.put(str(path), content)
    over.set()
    reader.join()
    assert seen <= contents


@pytest.mark.parametrize("where", ["folder", "missing/\0", "/proc/raycluster/file"])
def test_put_that_cannot_be_done_is_an_error(
    transport: Transport, tmp_path: Path, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((HostError, ValueError)):
        transport.put(str(tmp_path / where), b"content")
    assert list((tmp_path / "folder").iterdir()) == []


Listening = tuple[socket.socket, Address]


@pytest.fixture(params=["unix", "tcp"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    """Yield a listening socket of one family after the other, with its address."""
    if request.param == "tcp":
        server = socket.create_server(("127.0.0.1", 0))
        address: Address = server.getsockname()
    else:
        server = socket.socket(socket.AF_UNIX)
        address = str(tmp_path / "socket")
        server.bind(address)
        server.listen()
    with server:
        yield server, address


def test_connect_carries_both_ways(transport: Transport, listening: Listening) -> None:
    server, address = listening
    stream = transport.connect(address)
    peer, _ = server.accept()
    with peer, contextlib.closing(stream):
        content = os.urandom(4_000_000)
        sender = threading.Thread(target=_send_all, args=(stream, content))
        sender.start()
        assert _read(peer.recv) == content
        sender.join()
        sender = threading.Thread(target=_send_all, args=(peer, content))
        sender.start()
        assert _read(stream.recv) == content
        sender.join()


def _send_all(stream: ByteStream, content: bytes) -> None:
    stream.sendall(content)
    stream.shutdown(socket.SHUT_WR)


def _read(recv: Callable[[int], bytes]) -> bytes:
    parts = []
    while part := recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_stream_waits_as_long_as_it_is_told(transport: Transport, listening: Listening) -> None:
    with contextlib.closing(transport.connect(listening[1])) as stream:
        stream.settimeout(0.05)
        with pytest.raises(TimeoutError):
            stream.recv(1)


def test_connect_to_nothing_names_the_address(transport: Transport, tmp_path: Path) -> None:
    for address in (str(tmp_path / "nothing"), ("127.0.0.1", free_port())):
        place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        with pytest.raises(HostError, match=place):
            transport.connect(address)


def test_thirty_threads_share_it(transport: Transport) -> None:
    with ThreadPoolExecutor(30) as pool:
        texts = list(pool.map(lambda n: transport.run(("echo", str(n))).text, range(90)))
    assert texts == [str(n) for n in range(90)]


def test_it_closes_twice(transport: Transport) -> None:
    assert transport.alive
    transport.close()
    transport.close()
    assert transport.alive == isinstance(transport, LocalTransport)  # it holds no connection
