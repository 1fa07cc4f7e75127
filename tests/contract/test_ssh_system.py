"""The system's ssh as a transport: what it may trust, how it asks, what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycluster.core.errors import (
    AuthError,
    BeyondLibraryError,
    HostError,
    HostKeyError,
    UnjudgedKeyError,
    UnreachableError,
)
from raycluster.hosts import fleet
from raycluster.hosts.transports.ssh import SshOptions
from raycluster.hosts.transports.ssh_askpass import Askpass
from raycluster.hosts.transports.ssh_system import open_system
from raycluster.spec import read_spec
from tests.contract.sshd import SSHD, Sshd, make_key, wait_for
from tests.ports import free_port

if SSHD is None or shutil.which("ssh") is None:
    pytest.skip("needs OpenSSH's server and client", allow_module_level=True)

Start = Callable[..., Sshd]
Reach = Callable[..., tuple[bool, list[str]]]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Yield a server that tests share which do not change it; it has keys of three kinds."""
    kinds = ("ed25519", "ecdsa", "rsa")
    server = Sshd(tmp_path_factory.mktemp("sshd"), host_keys=kinds).start()
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts one more server, with lines for its configuration."""
    with contextlib.ExitStack() as stack:

        def one(extra: str = "") -> Sshd:
            server = Sshd(tmp_path / f"sshd-{free_port()}", extra).start()
            stack.callback(server.stop)
            return server

        yield one


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def works(options: SshOptions, ask: fleet.Ask | None = None) -> bool:
    """Connect and run a command."""
    with contextlib.closing(open_system("gpu-1", options, ask=ask)) as transport:
        return transport.run(("echo", "hi")).text == "hi"


def failing(kind: type[HostError], options: SshOptions, ask: fleet.Ask | None = None) -> HostError:
    """Return the error of an attempt to connect."""
    with pytest.raises(kind) as caught:
        open_system("gpu-1", options, ask=ask)
    assert type(caught.value) is kind
    assert caught.value.where == "gpu-1"
    assert caught.value.hint
    return caught.value


class Person:
    """Somebody who reads what is told, and answers nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, prompt: str) -> str:
        raise AssertionError(prompt)

    def tell(self, text: str) -> None:
        """Keep it."""
        self.told.append(text)


class TestHostKeys:
    def test_unknown_or_changed(self, sshd: Sshd, tmp_path: Path) -> None:
        known = tmp_path / "known"
        options = sshd.options(known_hosts=str(known))
        assert "No ED25519 host key is known" in failing(HostKeyError, options).what
        other = Path(f"{make_key(tmp_path / 'other')}.pub").read_text()
        known.write_text(f"[127.0.0.1]:{sshd.port} {other}")
        for policy in ("strict", "accept-new"):
            error = failing(HostKeyError, dataclasses.replace(options, host_keys=policy))
            assert "Host key verification failed" in error.what
        assert known.read_text() == f"[127.0.0.1]:{sshd.port} {other}"

    def test_a_pin_of_any_kind_decides_alone(self, sshd: Sshd, tmp_path: Path) -> None:
        nothing = str(tmp_path / "none")
        for kind in sshd.host_keys:
            assert works(sshd.options(known_hosts=nothing, host_key=sshd.fingerprint(kind)))
        error = failing(HostKeyError, sshd.options(host_key="SHA256:" + "A" * 43))
        assert "is not the one pinned in the spec" in error.what

    def test_a_pin_that_is_revoked(self, sshd: Sshd, tmp_path: Path) -> None:
        known = tmp_path / "known"
        line = Path(f"{sshd.folder}/host_ed25519.pub").read_text()
        for name in ("127.0.0.1", f"[127.0.0.1]:{sshd.port}"):
            known.write_text(f"@revoked {name} {line}")
            options = sshd.options(known_hosts=str(known), host_key=sshd.fingerprint())
            assert f"revoked by {known}:1" in failing(HostKeyError, options).what

    def test_accept_new_records_one_key_and_no_other(self, sshd: Sshd, tmp_path: Path) -> None:
        """The host also tells its other keys (UpdateHostKeys), which nobody has asked for."""
        known = tmp_path / "known"
        config = tmp_path / "config"
        config.write_text("UpdateHostKeys yes\nVerifyHostKeyDNS yes\n")
        options = sshd.options(
            known_hosts=str(known), host_keys="accept-new", config_file=str(config)
        )
        assert works(options)
        assert len(known.read_text().splitlines()) == 1
        known.write_text("@cert-authority * ssh-ed25519 AAAA\n")
        failing(HostKeyError, options)

    def test_what_the_config_says_of_loopback_does_not_count(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        config.write_text("NoHostAuthenticationForLocalhost yes\nStrictHostKeyChecking no\n")
        options = sshd.options(known_hosts=str(tmp_path / "none"), config_file=str(config))
        failing(HostKeyError, options)


class TestLogin:
    def test_a_refused_user_and_key(self, sshd: Sshd, tmp_path: Path) -> None:
        said = failing(AuthError, sshd.options(user="nosuchuser")).what
        assert "nosuchuser@127.0.0.1: Permission denied" in said
        failing(AuthError, sshd.options(identity_file=str(make_key(tmp_path / "stranger"))))

    def test_who_is_not_there(self, sshd: Sshd) -> None:
        said = failing(UnreachableError, sshd.options(port=free_port())).what
        assert "Connection refused" in said
        said = failing(UnreachableError, sshd.options(host="nosuch.invalid")).what
        assert "Could not resolve hostname" in said

    def test_a_passphrase_is_asked_for_where_somebody_answers(
        self, start: Start, tmp_path: Path
    ) -> None:
        server = start()
        key = make_key(tmp_path / "locked", passphrase="open sesame")
        shutil.copy(f"{key}.pub", server.folder / "authorized_keys")
        options = server.options(identity_file=str(key))
        asked: list[str] = []

        def ask(prompt: str) -> str:
            asked.append(prompt)
            return "open sesame"

        assert works(options, ask)
        assert len(asked) == 1
        assert str(key) in asked[0]
        failing(AuthError, options, lambda _: "wrong")
        failing(AuthError, options, lambda _: "")
        failing(AuthError, options)

    def test_that_a_key_wants_a_touch_is_told(self) -> None:
        person = Person()
        with Askpass(person) as askpass:
            for kind in ("none", "confirm"):
                environment = {**askpass.environment, "SSH_ASKPASS_PROMPT": kind}
                helper = (environment["SSH_ASKPASS"], "Confirm user presence for key")
                done = subprocess.run(helper, env=environment, check=False, capture_output=True)
                assert (done.returncode, done.stdout) == (1, b"")
        assert person.told == ["Confirm user presence for key"]
        assert not Path(askpass.environment["SSH_ASKPASS"]).exists()

    def test_jump_hosts(self, sshd: Sshd, start: Start) -> None:
        bastion = start()
        known = bastion.folder / "known_hosts"
        known.write_text(known.read_text() + (sshd.folder / "known_hosts").read_text())
        shutil.copy(sshd.folder / "client.pub", bastion.folder / "authorized_keys")
        hop = f"{sshd.options().user}@127.0.0.1:{bastion.port}"
        assert works(sshd.options(known_hosts=str(known), proxy_jump=hop))


SPEC = """
cluster.name = "c"
runtime.kind = "native"
models = [{{ name = "m" }}]
[head]
host = "box"
host_keys = "{policy}"
ssh = "{ssh}"
"""


class TestWhatTheLibraryCannot:
    """`auto` takes the system's ssh where it has to, and says so in one line."""

    @pytest.fixture
    def reach(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reach:
        """Return a function that tells whether a server is reached, and what is told meanwhile."""
        config, spec = tmp_path / "config", tmp_path / "cluster.toml"
        of_the_spec = fleet.ssh_options
        monkeypatch.setattr(
            fleet,
            "ssh_options",
            lambda host: dataclasses.replace(of_the_spec(host), config_file=str(config)),
        )

        def one(
            server: Sshd, ssh: str, lines: str = "", policy: str = "strict"
        ) -> tuple[bool, list[str]]:
            config.write_text(
                f"{lines}\nHost box\nHostName 127.0.0.1\nPort {server.port}\n"
                f"IdentityFile {server.folder}/client\nIdentitiesOnly yes\n"
                f"UserKnownHostsFile {server.folder}/known_hosts\n"
            )
            spec.write_text(SPEC.format(ssh=ssh, policy=policy))
            person = Person()
            opened = fleet.TRANSPORTS["ssh"](read_spec(spec).hosts[0], person)
            with contextlib.closing(opened) as transport:
                return transport.run(("echo", "hi")).text == "hi", person.told

        return one

    @pytest.mark.parametrize(
        "lines", ["KexAlgorithms sntrup761x25519-sha512@openssh.com", "MACs umac-64@openssh.com"]
    )
    def test_algorithms(self, start: Start, reach: Reach, lines: str) -> None:
        server = start(lines + "\nCiphers aes128-ctr")
        with pytest.raises(BeyondLibraryError):
            reach(server, "library")
        assert reach(server, "system") == (True, [])
        works, told = reach(server, "auto")
        assert works
        assert len(told) == 1
        assert told[0].startswith("head: ")
        assert told[0].endswith(": trying the system's ssh")

    @pytest.mark.parametrize("policy", ["strict", "accept-new"])
    def test_a_certificate_of_the_host(self, tmp_path: Path, reach: Reach, policy: str) -> None:
        authority = make_key(tmp_path / "authority")
        folder = tmp_path / "sshd"
        folder.mkdir()
        key = make_key(folder / "host_ed25519")
        sign = ("ssh-keygen", "-q", "-s", str(authority), "-I", "box", "-h", "-n", "127.0.0.1")
        subprocess.run((*sign, f"{key}.pub"), check=True)
        server = Sshd(folder, f"HostCertificate {key}-cert.pub").start()
        try:
            known = folder / "known_hosts"
            known.write_text(f"@cert-authority * {Path(f'{authority}.pub').read_text()}")
            with pytest.raises(UnjudgedKeyError):
                reach(server, "library", policy=policy)
            assert reach(server, "auto", policy=policy)[0]
            other = Path(f"{make_key(tmp_path / 'other')}.pub").read_text()
            known.write_text(f"@cert-authority * {other}")
            before = known.read_text()
            with pytest.raises(HostKeyError):
                reach(server, "auto", policy=policy)
            assert known.read_text() == before
        finally:
            server.stop()

    def test_a_known_hosts_command(self, start: Start, reach: Reach) -> None:
        server = start()
        words = f"KnownHostsCommand /bin/cat {server.folder}/more"
        known = server.folder / "known_hosts"
        known.rename(server.folder / "more")
        assert reach(server, "auto", words)[0]
        assert reach(server, "auto", words)[1]

    def test_without_an_ssh_the_librarys_error_stands(
        self, start: Start, reach: Reach, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start("KexAlgorithms sntrup761x25519-sha512@openssh.com")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(BeyondLibraryError):
            reach(server, "auto")
        with pytest.raises(UnreachableError, match="there is no `ssh` on this machine"):
            reach(server, "system")


PROGRAM = """
import sys, time
from raycluster.hosts.transports.ssh import SshOptions
from raycluster.hosts.transports.ssh_system import open_system
host, port, user, key, known = sys.argv[1:]
transport = open_system("gpu-1", SshOptions(host, int(port), user, key, known, config_file="none"))
print(transport.run(("echo", "up")).text, flush=True)
time.sleep(60)
"""


class TestNothingStays:
    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Yield a folder with a short path, in which temporary folders are made."""
        made = Path(f"/tmp/rc-{os.getpid()}-{time.monotonic_ns()}")
        made.mkdir(mode=0o700)
        monkeypatch.setenv("TMPDIR", str(made))
        monkeypatch.setattr("tempfile.tempdir", None)
        yield made
        shutil.rmtree(made)

    def test_the_socket_is_nobody_elses_and_goes(self, sshd: Sshd, folder: Path) -> None:
        with contextlib.closing(open_system("gpu-1", sshd.options(), ask=lambda _: "")):
            [made] = folder.iterdir()  # what asks is gone after the login
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
            assert (made / "ctl").is_socket()
        assert not list(folder.iterdir())
        failing(UnreachableError, sshd.options(port=free_port()))
        assert not list(folder.iterdir())

    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_however_the_program_ends(
        self, sshd: Sshd, folder: Path, ending: signal.Signals
    ) -> None:
        options = sshd.options()
        words = (options.host, options.port, options.user, options.identity_file)
        program = (sys.executable, "-c", PROGRAM, *map(str, words), str(options.known_hosts))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(program, **pipes, text=True) as child:  # type: ignore[call-overload]
            assert child.stdout.readline() == "up\n"
            assert list(folder.iterdir())
            child.send_signal(ending)
            child.wait()
            wait_for(lambda: not list(folder.iterdir()), "the folder is gone")
        wait_for(lambda: not sshd.workers(), "the connection has ended")
