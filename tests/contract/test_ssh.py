"""Connections by SSH once they stand: limits of sshd, peers that die, speed, the command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycluster.core.errors import (
    ConnectionLostError,
    HostError,
    HostKeyError,
)
from raycluster.hosts.transports import ssh_options
from raycluster.hosts.transports.ssh import SshOptions, pinned_key
from raycluster.hosts.transports.ssh_command import command_line
from tests.contract.ssh_client import Start, failing, opened, works
from tests.contract.sshd import SSHD, Sshd, slow_line, wait_for
from tests.ports import free_port

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)


@pytest.mark.usefixtures("either_way")
class TestLimits:
    def test_more_commands_than_sessions(self, start: Start) -> None:
        with opened(start("MaxSessions 2").options()) as transport:
            with ThreadPoolExecutor(12) as pool:
                said = list(pool.map(lambda n: transport.run(("echo", str(n))).text, range(40)))
            assert said == [str(n) for n in range(40)]

    def test_streams_need_no_session(self, start: Start, tmp_path: Path) -> None:
        path = str(tmp_path / "socket")
        with (
            opened(start("MaxSessions 1").options()) as transport,
            contextlib.closing(socket.socket(socket.AF_UNIX)) as server,
            contextlib.ExitStack() as stack,
        ):
            server.bind(path)
            server.listen(100)
            for _ in range(50):
                stack.enter_context(contextlib.closing(transport.connect(path)))
            assert transport.run(("echo", "hi")).text == "hi"

    def test_all_sessions_taken(self, start: Start) -> None:
        with opened(start("MaxSessions 1").options()) as transport:
            stream = transport.stream(("sh", "-c", "echo up; sleep 100"))
            next(stream)
            with pytest.raises(HostError, match="does not open another session") as caught:
                transport.run(("true",), timeout=2)
            assert "MaxSessions" in caught.value.hint

    def test_tcp_forwarding_forbidden(self, start: Start) -> None:
        with (
            opened(start("AllowTcpForwarding no").options()) as transport,
            pytest.raises(HostError) as caught,
        ):
            transport.connect(("127.0.0.1", free_port()))
        assert "AllowTcpForwarding" in caught.value.hint

    def test_unix_forwarding_forbidden_and_other_reasons(
        self, start: Start, sshd: Sshd, tmp_path: Path
    ) -> None:
        path = tmp_path / "socket"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(str(path))
            server.listen()
            with (
                opened(start("AllowStreamLocalForwarding no").options()) as transport,
                pytest.raises(HostError) as caught,
            ):
                transport.connect(str(path))
            assert "AllowStreamLocalForwarding" in caught.value.hint
        with opened(sshd.options()) as transport:
            for address, what in (
                (path, "nothing listens there"),
                (tmp_path / "none", "the socket does not exist"),
                (tmp_path, "it is not a socket"),
            ):
                with pytest.raises(HostError, match=what):
                    transport.connect(str(address))

    def test_a_host_that_runs_no_commands(self, start: Start) -> None:
        with (
            opened(start("MaxSessions 0").options()) as transport,
            pytest.raises(HostError, match="does not open another session"),
        ):
            transport.run(("true",), timeout=2)


@pytest.mark.usefixtures("either_way")
class TestDeath:
    def test_the_connection_breaks_in_the_middle(self, start: Start) -> None:
        server = start()
        with opened(server.options()) as transport:
            stream = transport.stream(("sh", "-c", "echo up; sleep 60"))
            next(stream)
            server.signal_workers(signal.SIGKILL)
            with pytest.raises(ConnectionLostError, match="gpu-1: the SSH connection broke"):
                next(stream)
            with pytest.raises(ConnectionLostError):
                transport.run(("true",))
            with pytest.raises(ConnectionLostError):
                transport.put("/tmp/raycluster-never", b"x")
            with pytest.raises(ConnectionLostError):
                transport.connect(("127.0.0.1", server.port))
            assert not transport.alive

    @pytest.mark.parametrize("busy", [False, True])
    def test_a_frozen_sshd_is_noticed(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, busy: bool
    ) -> None:
        server = start()
        monkeypatch.setattr(ssh_options, "PULSE_S", 0.2)
        monkeypatch.setattr(ssh_options, "SILENCE_S", 1.5)
        with opened(server.options()) as transport:
            stream = transport.stream(("sh", "-c", "echo up; sleep 60"))
            next(stream)
            server.signal_workers(signal.SIGSTOP)
            try:
                began = time.monotonic()
                with pytest.raises(ConnectionLostError, match="stopped responding"):
                    if busy:
                        transport.run(("cat",), input=bytes(50_000_000))
                    else:
                        next(stream)
                assert 1 < time.monotonic() - began < 6
            finally:
                server.signal_workers(signal.SIGCONT)

    def test_an_idle_connection_that_answers_stays(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ssh_options, "PULSE_S", 0.1)
        monkeypatch.setattr(ssh_options, "SILENCE_S", 2.5)
        with opened(start().options()) as transport:
            assert transport.run(("sleep", "5")).exit_code == 0
            assert transport.alive

    def test_a_stream_that_breaks_is_no_end(self, start: Start) -> None:
        server = start()
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            opened(server.options()) as transport,
        ):
            stream = transport.connect(listener.getsockname())
            server.signal_workers(signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                stream.recv(1)
            with pytest.raises(OSError, match=r"broke|closed"):
                stream.sendall(b"x")

    def test_closed_streams_do_not_harm_the_others(self, sshd: Sshd) -> None:
        """Data after our CLOSE makes sshd drop every stream of the connection."""
        with (
            socket.create_server(("127.0.0.1", 0), backlog=100) as listener,
            opened(sshd.options()) as transport,
        ):

            def torture(_: int) -> None:
                stream = transport.connect(listener.getsockname())
                sender = threading.Thread(target=_flood, args=(stream,))
                sender.start()
                stream.close()
                sender.join()

            accepting = threading.Thread(target=_accept_and_drop, args=(listener, 200))
            accepting.start()
            with ThreadPoolExecutor(10) as pool:
                list(pool.map(torture, range(200)))
            accepting.join()
            assert transport.alive
            assert transport.run(("echo", "hi")).text == "hi"


def _flood(stream: object) -> None:
    with contextlib.suppress(OSError):
        for _ in range(50):
            stream.sendall(b"x" * 10_000)  # type: ignore[attr-defined]


def _accept_and_drop(listener: socket.socket, count: int) -> None:
    for _ in range(count):
        listener.accept()[0].close()


class TestSpeed:
    def test_a_far_host_costs_few_round_trips(self, sshd: Sshd) -> None:
        pin = sshd.fingerprint()
        with (
            slow_line(sshd.port, 0.1) as line,
            opened(sshd.options(port=line.port, host_key=pin)) as transport,
        ):
            connected = line.trips
            transport.run(("true",))
            command = line.trips - connected
        assert connected < 7
        assert command < 4

    def test_twenty_hosts_at_once(self, sshd: Sshd) -> None:
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(lambda _: works(sshd.options()), range(20)))

    def test_a_failed_attempt_leaves_no_thread(self, sshd: Sshd, tmp_path: Path) -> None:
        before = threading.active_count()
        for _ in range(3):
            failing(HostKeyError, sshd.options(known_hosts=str(tmp_path / "none")))
        wait_for(lambda: threading.active_count() <= before, "all threads have ended")


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _needs_ssh(self) -> None:
        if shutil.which("ssh") is None:
            pytest.skip("needs OpenSSH's client")

    def test_it_does_the_same(self, sshd: Sshd, start: Start) -> None:
        bastion = start()
        known = bastion.folder / "known_hosts"
        known.write_text(known.read_text() + (sshd.folder / "known_hosts").read_text())
        shutil.copy(sshd.folder / "client.pub", bastion.folder / "authorized_keys")
        hop = f"{sshd.options().user}@127.0.0.1:{bastion.port}"
        for jump in (None, hop, f"{hop},{hop}"):
            options = sshd.options(known_hosts=str(known), proxy_jump=jump)
            done = subprocess.run(
                (*command_line(options), "echo", "hi"),
                capture_output=True,
                check=False,
                env={**os.environ, "SSH_AUTH_SOCK": ""},
            )
            assert (done.returncode, done.stdout) == (0, b"hi\n"), done.stderr.decode()

    def logs_in(self, options: SshOptions, pinned: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            (*command_line(options, pinned.partition(" ")[0]), "echo", "hi"),
            capture_output=True,
            check=False,
            env={**os.environ, "SSH_AUTH_SOCK": ""},
        )

    def test_a_pinned_key_and_no_other(self, start: Start, tmp_path: Path) -> None:
        server = start(host_keys=("ed25519", "rsa"))
        nothing = str(tmp_path / "none")
        for kind in server.host_keys:
            options = server.options(known_hosts=nothing, host_key=server.fingerprint(kind))
            done = self.logs_in(options, pinned_key("gpu-1", options))
            assert (done.returncode, done.stdout) == (0, b"hi\n"), done.stderr.decode()
        for wrong in ("SHA256:" + "A" * 43, server.fingerprint("rsa")):
            done = self.logs_in(server.options(host_key=wrong), "ssh-ed25519")
            assert (done.returncode, done.stdout) == (255, b"")
            assert b"Host key verification failed" in done.stderr

    def test_the_command_refuses_a_host_that_is_not_the_pinned_one(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        options = sshd.options()
        for pin, code in ((sshd.fingerprint(), 0), ("SHA256:" + "A" * 43, 1)):
            spec = tmp_path / "cluster.toml"
            spec.write_text(
                f"""
                cluster.name = "pin"
                runtime.kind = "native"
                models = [{{ name = "m" }}]
                [head]
                host = "{options.host}"
                port = {options.port}
                user = "{options.user}"
                identity_file = "{options.identity_file}"
                known_hosts = "{options.known_hosts}"
                host_key = "{pin}"
                """
            )
            program = (sys.executable, "-c", "from raycluster.cli import main; main()")
            command = ("ssh", "--spec", str(spec), "head", "--", "echo", "hi")
            done = subprocess.run((*program, *command), capture_output=True, check=False)
            assert done.returncode == code, done.stderr.decode()
            assert (done.stdout == b"hi\n") == (code == 0)
        assert b"but the spec pins SHA256:AAAA" in done.stderr
