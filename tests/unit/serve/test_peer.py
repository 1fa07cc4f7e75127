"""Who gets a request with a secret: real listeners of this user, of others, and out of sight."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from raycluster.serve import peer

NOBODY = 65534
REQUEST = b"GET / HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n"
PROGRAM = (sys.executable, "-I", "-S", "-c", inspect.getsource(peer))
OUT_OF_SIGHT = ("unshare", "--pid", "--fork", "--mount-proc")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users' sockets: needs root")


def listener(family: socket.AddressFamily = socket.AF_INET, port: int = 0) -> socket.socket:
    """Listen on this machine; a socket of IPv6 takes IPv4 too."""
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", port))
    made.listen(1)
    made.settimeout(20)
    return made


@contextmanager
def as_user(uid: int, work: Callable[[], bytes]) -> Iterator[Callable[[], bytes]]:
    """Do something as another user meanwhile; what is yielded returns what came of it."""
    near, far = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(uid, uid, uid)
            os.write(far, work())
        finally:
            os._exit(0)
    os.close(far)

    def result() -> bytes:
        with os.fdopen(near, "rb") as file:
            return file.read()

    yield result
    os.waitpid(child, 0)


def serve(family: socket.AddressFamily, port: Callable[[int], object]) -> bytes:
    """Listen, take one connection, answer it, and return what came."""
    with listener(family) as server:
        port(server.getsockname()[1])
        taken, _ = server.accept()
        with taken:
            came = taken.recv(1000)
            taken.sendall(b"answer" if came else b"")
    return came


def ask(port: int, *before: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        (*before, *PROGRAM, str(port), "10"),
        input=REQUEST,
        capture_output=True,
        check=False,
        timeout=60,
    )


def served(uid: int, family: socket.AddressFamily, *before: str) -> tuple[int, bytes, bytes]:
    """Return the program's end, what it wrote, and what came at a server of that user."""
    told, tell = os.pipe()
    with as_user(uid, lambda: serve(family, lambda port: os.write(tell, b"%d" % port))) as came:
        done = ask(int(os.read(told, 10)), *before)
        seen = came()
    os.close(told)
    os.close(tell)
    return done.returncode, done.stdout + done.stderr, seen


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_process_of_ours_is_asked(family: socket.AddressFamily) -> None:
    assert served(os.geteuid(), family) == (0, b"answer", REQUEST)


def test_a_process_of_ours_that_is_slow_to_take_it_is_waited_for() -> None:
    with listener() as server, ThreadPoolExecutor(1) as beside:
        asked = beside.submit(ask, server.getsockname()[1])
        while not any(_unaccepted(server)):
            assert not asked.done()
        with server.accept()[0] as taken:
            assert taken.recv(1000) == REQUEST
            taken.sendall(b"answer")
        assert asked.result().stdout == b"answer"


def _unaccepted(server: socket.socket) -> Iterator[peer.End]:
    place = peer._written(server.getsockname())
    return (e for e in peer._ends() if e.local in place and e.state != "0A")


def test_one_that_leaves_at_once_is_no_wait() -> None:
    with listener() as server, ThreadPoolExecutor(1) as beside:
        asked = beside.submit(ask, server.getsockname()[1])
        server.accept()[0].close()
        done = asked.result()
    assert (done.returncode, done.stdout) == (peer.SILENT, b"")


@as_root
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_another_user_gets_nothing(family: socket.AddressFamily) -> None:
    assert served(NOBODY, family) == (peer.TAKEN, b"65534\n", b"")


@as_root
def test_the_same_user_out_of_sight_gets_nothing() -> None:
    assert served(0, socket.AF_INET, *OUT_OF_SIGHT) == (peer.TAKEN, b"0\n", b"")


@as_root
def test_a_connection_that_nobody_has_taken_is_nobodys() -> None:
    """The kernel gives it to root, by number; the listener tells whose it will be."""
    told, tell = os.pipe()

    def hold() -> bytes:
        with listener() as server:
            os.write(tell, b"%d" % server.getsockname()[1])
            server.settimeout(20)
            os.read(wait, 1)
            return server.accept()[0].recv(1000)

    wait, go = os.pipe()
    with as_user(NOBODY, hold) as came:
        done = ask(int(os.read(told, 10)))
        os.write(go, b"x")
        assert came() == b""
    assert (done.returncode, done.stderr) == (peer.TAKEN, b"65534\n")


@as_root
def test_a_port_that_comes_back_to_us_does_not_hide_who_took_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, tell = os.pipe()
    wait, go = os.pipe()

    def take() -> bytes:
        with listener() as server:
            os.write(tell, b"%d" % server.getsockname()[1])
            taken, _ = server.accept()
        os.write(tell, b"free")
        os.read(wait, 1)
        return taken.recv(1000)

    def dial(address: tuple[str, int], seconds: float) -> socket.socket:
        connection = real(address, seconds)
        assert os.read(told, 10) == b"free"
        ours.append(listener(port=address[1]))
        return connection

    real, ours = socket.create_connection, list[socket.socket]()
    monkeypatch.setattr(socket, "create_connection", dial)
    with as_user(NOBODY, take) as came:
        port = int(os.read(told, 10))
        with pytest.raises(peer.TakenError) as caught:
            peer.connect(port, 10)
        os.write(go, b"x")
        assert came() == b""
    assert (caught.value.port, caught.value.uid) == (port, NOBODY)
    ours[0].close()


def test_nobody_listens_and_nobody_stays() -> None:
    with listener() as server:
        port = server.getsockname()[1]
    done = ask(port)
    assert (done.returncode, done.stderr) == (peer.SILENT, b"Connection refused\n")
