"""Ways to an SSH server: algorithms, addresses, proxy commands, jump hosts."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raycluster.core.errors import (
    BeyondLibraryError,
    HostKeyError,
    SpecError,
    UnreachableError,
)
from raycluster.hosts.transports.ssh import SshOptions
from tests.contract import ssh_client
from tests.contract.ssh_client import Start, failing, opened, works
from tests.contract.sshd import SSHD, Sshd
from tests.ports import free_port

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)


class TestAlgorithms:
    @pytest.mark.parametrize(
        "extra",
        [
            "Ciphers chacha20-poly1305@openssh.com\nMACs umac-128-etm@openssh.com",
            "Ciphers chacha20-poly1305@openssh.com\nRekeyLimit 100K",
            "Ciphers aes256-gcm@openssh.com\nMACs umac-64@openssh.com",
            "KexAlgorithms curve25519-sha256",
        ],
    )
    def test_in_common(self, start: Start, extra: str) -> None:
        with opened(start(extra).options()) as transport:
            content = os.urandom(1_000_000)
            assert transport.run(("cat",), input=content).stdout == content
            for size in range(20):
                assert transport.run(("echo", "x" * size)).text == "x" * size

    @pytest.mark.parametrize(
        ("extra", "kind", "offers", "line"),
        [
            ("Ciphers 3des-cbc", "cipher", "3des-cbc", "Ciphers +aes256-gcm@openssh.com"),
            ("Ciphers aes128-ctr\nMACs umac-64@openssh.com", "MAC", "umac-64@openssh.com",
             "MACs +hmac-sha2-256-etm@openssh.com"),
            ("KexAlgorithms sntrup761x25519-sha512@openssh.com", "key exchange",
             "sntrup761x25519-sha512@openssh.com", "KexAlgorithms +curve25519-sha256"),
            ("HostKeyAlgorithms ssh-rsa", "host key algorithm", "ssh-rsa",
             "HostKeyAlgorithms +ssh-ed25519"),
        ],
    )  # fmt: skip
    def test_nothing_in_common(
        self, start: Start, extra: str, kind: str, offers: str, line: str
    ) -> None:
        server = start(extra, host_keys=("rsa",) if "HostKey" in extra else ("ed25519",))
        for pin in (None, server.fingerprint(server.host_keys[0])):
            error = failing(BeyondLibraryError, server.options(host_key=pin))
            assert (
                f"no {kind} in common: the host offers {offers}; the library supports" in error.what
            )
            assert f"`{line}`" in error.hint


class TestReaching:
    def test_closed_port(self, sshd: Sshd) -> None:
        error = failing(UnreachableError, sshd.options(port=free_port()))
        assert "refused the connection" in error.what

    def test_a_name_that_means_nothing(self, sshd: Sshd) -> None:
        error = failing(UnreachableError, sshd.options(host="nosuch.invalid"))
        assert "nosuch.invalid cannot be resolved" in error.what

    def test_nobody_accepts(self, sshd: Sshd) -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            port = full.getsockname()[1]
            error = failing(UnreachableError, sshd.options(port=port, connect_timeout=0.5))
            for filler in fillers:
                filler.close()
        assert "did not respond within 0.5 s" in error.what

    @pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xfe\n"])
    def test_not_an_ssh_server(self, sshd: Sshd, greeting: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def greet() -> None:
                peer, _ = server.accept()
                with peer:
                    peer.sendall(greeting)
                    peer.shutdown(socket.SHUT_WR) if greeting else peer.recv(100)
                    while peer.recv(100):
                        pass

            greeter = threading.Thread(target=greet)
            greeter.start()
            port = server.getsockname()[1]
            began = time.monotonic()
            patience = 10.0 if greeting else 1.0
            error = failing(UnreachableError, sshd.options(port=port, connect_timeout=patience))
            assert time.monotonic() - began < 4
            greeter.join()
        why = "it uses another protocol" if greeting else "no banner within 1 s"
        assert f"not as an SSH server ({why})" in error.what

    def test_who_closes_at_once(self, sshd: Sshd) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def close() -> None:
                server.accept()[0].close()

            closer = threading.Thread(target=close)
            closer.start()
            error = failing(UnreachableError, sshd.options(port=server.getsockname()[1]))
            closer.join()
        assert "not as an SSH server (it closed the connection)" in error.what

    @pytest.mark.parametrize("host", ["-oProxyCommand=id", "", "a b", "a;id", "$(id)", "a\nb"])
    def test_names_that_are_none(self, sshd: Sshd, host: str) -> None:
        with pytest.raises(SpecError, match="gpu-1: host"):
            ssh_client.open_ssh("gpu-1", sshd.options(host=host))

    def test_the_config_is_honoured(self, sshd: Sshd, tmp_path: Path) -> None:
        (tmp_path / "more").write_text(f"Host box\n  Port {sshd.port}\n  HostName 127.0.0.1\n")
        known = tmp_path / "known"
        lines = (sshd.folder / "known_hosts").read_text()
        known.write_text("boxalias " + lines.partition(" ")[2])
        config = tmp_path / "config"
        config.write_text(
            f"Include {tmp_path}/more\nHost box\n  IdentityFile {sshd.folder}/client\n"
            f"  UserKnownHostsFile {known}\n  HostKeyAlias boxalias\n  Port 1\n"
        )
        options = SshOptions("box", config_file=str(config))
        with opened(options) as transport:
            assert transport.address == "127.0.0.1"
            assert transport.run(("echo", "hi")).text == "hi"

    def test_a_proxy_command(self, sshd: Sshd, tmp_path: Path) -> None:
        script = (
            "import os, socket, sys, threading\n"
            "peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "def up():\n"
            "    while data := os.read(0, 65536): peer.sendall(data)\n"
            "threading.Thread(target=up, daemon=True).start()\n"
            "while data := peer.recv(65536): os.write(1, data)\n"
        )
        (tmp_path / "nc.py").write_text(script)
        config = tmp_path / "config"
        config.write_text(f"Host *\n ProxyCommand {sys.executable} {tmp_path}/nc.py %h %p\n")
        assert works(sshd.options(config_file=str(config)))


class TestProxyCommand:
    CARRY = (
        "import os, socket, sys, threading, time\n"
        "peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "print(*sys.argv[3:], flush=True)\n"
        "def up():\n"
        "    while data := os.read(0, 65536): peer.sendall(data)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "time.sleep(float(os.environ.get('LATE', 0)))\n"
        "while data := peer.recv(65536): os.write(1, data)\n"
    )

    @pytest.fixture
    def options(self, sshd: Sshd, tmp_path: Path) -> Callable[..., SshOptions]:
        """Return a function that returns options with a ProxyCommand."""
        (tmp_path / "nc.py").write_text(self.CARRY)

        def with_command(command: str, more: str = "", **changes: object) -> SshOptions:
            config = tmp_path / "config"
            config.write_text(f"ProxyCommand {command}\n{more}\n")
            return sshd.options(config_file=str(config), **changes)

        return with_command

    def carrying(self, tmp_path: Path) -> str:
        return f"{sys.executable} {tmp_path}/nc.py %h %p"

    def test_lines_before_the_server_s_own(
        self, options: Callable[..., SshOptions], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert works(options(f"{self.carrying(tmp_path)} Welcome; echo noise >&2"))
        assert works(options(f"bash -c 'echo noise >&2; exec {self.carrying(tmp_path)} 50%% %n'"))
        assert capfd.readouterr() == ("", "")

    def test_one_that_takes_long_works(
        self,
        options: Callable[..., SshOptions],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LATE", "2.5")
        late = f"{self.carrying(tmp_path)} Welcome"  # paramiko waits 2 s behind the first line
        assert works(options(late, connect_timeout=10.0))  # the default: nobody said one
        error = failing(UnreachableError, options(late, connect_timeout=1.0))
        assert "reached no SSH server within 1 s" in error.what
        assert "connect_timeout" in error.hint

    @pytest.mark.parametrize(
        ("command", "what", "hint"),
        [
            ("sh -c 'echo no route >&2; exit 3'", "ended with 3: no route", "run it by hand"),
            ("/nonexistent/nc %h %p", "ended with 127: ", "the program does not exist"),
            ("sh -c 'kill -9 $$'", "killed by signal 9, and printed nothing", "run it by hand"),
            ("sh -c 'echo HTTP/1.1 403; exit 1'",
             "printed 'HTTP/1.1 403', which is not an SSH server, and ended with "
             "1", "run it by hand"),
            ("sh -c 'echo waiting >&2; exec sleep 60'",
             "reached no SSH server within 1 s: waiting", "connect_timeout"),
            ("sh -c 'yes hello | head -c 300000 >&2; exit 1'", "ended with 1: ", "run it by hand"),
        ],
    )  # fmt: skip
    def test_one_that_fails_is_named(
        self,
        options: Callable[..., SshOptions],
        command: str,
        what: str,
        hint: str,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        patience = 1.0 if "sleep 60" in command else 30.0
        error = failing(UnreachableError, options(command, connect_timeout=patience))
        shown = command.replace("%h %p", f"127.0.0.1 {options(command).port}")
        assert f"its ProxyCommand `{shown}`" in error.what
        assert what in error.what
        assert len(error.what) < 2000
        assert hint in error.hint
        assert capfd.readouterr() == ("", "")

    def test_one_of_a_jump_host(self, sshd: Sshd, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text("Host hop\nProxyCommand sh -c 'echo no route >&2; exit 3'\n")
        options = sshd.options(config_file=str(config), proxy_jump="hop")
        error = failing(UnreachableError, options)
        assert error.what.startswith("jump host hop: its ProxyCommand `sh -c")
        assert "ended with 3: no route" in error.what

    def test_one_that_hands_over_a_descriptor(self, options: Callable[..., SshOptions]) -> None:
        error = failing(BeyondLibraryError, options("nc -F %h %p", "ProxyUseFdpass yes"))
        assert "ProxyUseFdpass" in error.what


class TestJumps:
    def test_two_hops_each_verified_with_its_own_config(self, start: Start, tmp_path: Path) -> None:
        first, second, last = start(), start(), start()
        config = tmp_path / "config"
        config.write_text(
            "".join(
                f"Host {name}\n HostName 127.0.0.1\n Port {server.port}\n"
                f" IdentityFile {server.folder}/client\n"
                f" UserKnownHostsFile {server.folder}/known_hosts\n"
                for name, server in (("one", first), ("two", second), ("end", last))
            )
        )
        options = SshOptions("end", proxy_jump="one,two", config_file=str(config))
        with opened(options) as transport:
            assert transport.run(("cat",), input=bytes(3_000_000)).stdout == bytes(3_000_000)
            assert transport.address == "127.0.0.1"
            assert [len(server.workers()) > 0 for server in (first, second, last)] == [True] * 3
        (second.folder / "known_hosts").write_text("")
        error = failing(HostKeyError, options)
        assert error.what.startswith("jump host two: its host key is unknown")

    @pytest.mark.parametrize("extra", ["AllowTcpForwarding no", "ForceCommand /bin/false"])
    def test_what_the_bastion_forbids(self, sshd: Sshd, start: Start, extra: str) -> None:
        bastion = start(extra)
        known = bastion.folder / "known_hosts"
        known.write_text(known.read_text() + (sshd.folder / "known_hosts").read_text())
        shutil.copy(sshd.folder / "client.pub", bastion.folder / "authorized_keys")
        options = sshd.options(known_hosts=str(known), proxy_jump=f"127.0.0.1:{bastion.port}")
        if "Forwarding" in extra:
            assert "AllowTcpForwarding" in failing(UnreachableError, options).what
        else:
            assert works(options)

    def test_a_hop_that_is_not_there(self, sshd: Sshd) -> None:
        options = sshd.options(proxy_jump=f"me@127.0.0.1:{free_port()}")
        assert "jump host 127.0.0.1: " in failing(UnreachableError, options).what

    def test_the_end_of_the_way_is_closed(self, sshd: Sshd) -> None:
        hop = f"{sshd.options().user}@127.0.0.1:{sshd.port}"
        options = sshd.options(host="localhost", port=free_port(), proxy_jump=hop)
        assert "through the jump host" in failing(UnreachableError, options).what
