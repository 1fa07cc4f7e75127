from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import Address, Transport
from raycluster.hosts.transports.local import LocalTransport


@pytest.fixture
def here() -> LocalTransport:
    return LocalTransport("laptop")


def test_is_a_transport(here: LocalTransport) -> None:
    transport: Transport = here
    assert transport.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("argv", "code", "stdout", "stderr"),
    [
        (("printf", "%s|", "a b", "$(id)", "it's", "\n"), 0, b"a b|$(id)|it's|\n|", b""),
        (("sh", "-c", "echo no >&2; exit 3"), 3, b"", b"no\n"),
        (("sh", "-c", "kill -9 $$"), 137, b"", b""),
        (("no-such-program",), 127, b"", b"no-such-program: No such file or directory\n"),
        (("/etc",), 126, b"", b"/etc: Permission denied\n"),
    ],
)
def test_run_reports_how_a_command_ended(
    here: LocalTransport, argv: tuple[str, ...], code: int, stdout: bytes, stderr: bytes
) -> None:
    done = here.run(argv)
    assert (done.exit_code, done.stdout, done.stderr) == (code, stdout, stderr)


def test_run_gives_input_and_environment(here: LocalTransport) -> None:
    done = here.run(("sh", "-c", 'cat; printf %s "$WORD"'), input=b"in ", env={"WORD": "x y"})
    assert done.text == "in x y"


def test_run_begins_in_the_home_folder(here: LocalTransport) -> None:
    assert here.run(("pwd", "-P")).text == str(Path.home().resolve())


def test_a_home_folder_that_does_not_exist_is_named(
    here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    with pytest.raises(HostError, match=f"the home folder {tmp_path}/nowhere does not exist"):
        here.run(("true",))
    with pytest.raises(HostError, match="does not exist"):
        list(here.stream(("true",)))


def test_a_command_that_takes_too_long_is_ended_with_its_children(
    here: LocalTransport, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    for seconds in (1, 5, 25):  # until it had begun within them
        with pytest.raises(HostError, match=f"laptop: sh did not finish within {seconds} s"):
            here.run(("sh", "-c", f"sleep 60 & echo $! > {note}; wait"), timeout=seconds)
        if note.exists() and note.read_text():
            break
    assert _gone(int(note.read_text()))


def test_stream_yields_both_channels_then_the_status(here: LocalTransport) -> None:
    seen: list[tuple[str, bytes]] = []
    with pytest.raises(CommandError, match="sh ended with 7") as failure:
        for each in here.stream(("sh", "-c", "echo out; echo err >&2; exit 7")):
            seen.append(each)
    assert sorted(seen) == [("stderr", b"err\n"), ("stdout", b"out\n")]
    assert failure.value.status == 7


def test_stream_yields_while_the_command_runs(here: LocalTransport) -> None:
    stream = here.stream(("sh", "-c", "echo $$; exec sleep 60"))
    channel, chunk = next(stream)
    assert channel == "stdout"
    stream.close()  # type: ignore[attr-defined]
    assert _gone(int(chunk))


def test_stream_of_a_missing_program(here: LocalTransport) -> None:
    with pytest.raises(CommandError, match="No such file") as failure:
        next(here.stream(("no-such-program",)))
    assert failure.value.status == 127


def test_put_writes_whole_files_with_their_mode(here: LocalTransport, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "key"
    here.put(str(target), b"one", mode=0o600)
    here.put(str(target), b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert [each.name for each in target.parent.iterdir()] == ["key"]


def test_put_that_fails_says_where_and_why(here: LocalTransport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"laptop: cannot write .*: Not a directory"):
        here.put(str(tmp_path / "file" / "x"), b"")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_connect_reaches_listeners(
    here: LocalTransport, family: socket.AddressFamily, tmp_path: Path
) -> None:
    with socket.socket(family) as server:
        server.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s"))
        server.listen()
        threading.Thread(target=_greet, args=(server,)).start()
        address: Address = server.getsockname()
        stream = here.connect(address)
        assert stream.recv(10) == b"hello"
        stream.close()


@pytest.mark.parametrize("address", ["/no/socket", ("127.0.0.1", 1)])
def test_connect_says_what_does_not_answer(here: LocalTransport, address: Address) -> None:
    with pytest.raises(HostError, match="laptop: cannot connect to "):
        here.connect(address)


def _greet(server: socket.socket) -> None:
    peer, _ = server.accept()
    with peer:
        peer.sendall(b"hello")


def _gone(pid: int, within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        os.sched_yield()
    return False
