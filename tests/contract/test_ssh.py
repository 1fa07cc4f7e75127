"""What only SSH has: host keys, logins, jump hosts, limits of sshd, and peers that die."""

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from raycluster.core.errors import (
    AuthError,
    BeyondLibraryError,
    ConnectionLostError,
    HostError,
    HostKeyError,
    SpecError,
    UnjudgedKeyError,
    UnreachableError,
)
from raycluster.hosts.transports import ssh_options
from raycluster.hosts.transports.ssh import SshOptions, SshTransport, open_ssh, pinned_key
from raycluster.hosts.transports.ssh_command import command_line
from raycluster.hosts.transports.ssh_system import open_system
from tests.contract.ssh_agent import FakeAgent, HeldKey, TokenKey, fake_agent
from tests.contract.sshd import SSHD, Sshd, make_key, slow_line, wait_for
from tests.ports import free_port

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)

Start = Callable[..., Sshd]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts one more server, with lines for its configuration."""
    with contextlib.ExitStack() as stack:

        def one(extra: str = "", host_keys: tuple[str, ...] = ("ed25519",)) -> Sshd:
            server = Sshd(tmp_path / f"sshd-{free_port()}", extra, host_keys).start()
            stack.callback(server.stop)
            return server

        yield one


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Yield a server that tests share which do not change it."""
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture(params=[open_ssh, open_system], ids=["library", "system"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test connect in this process, and with the system's ssh."""
    monkeypatch.setattr(sys.modules[__name__], "open_ssh", request.param)


@contextlib.contextmanager
def opened(
    options: SshOptions, *, ask: Callable[[str], str] | None = None
) -> Iterator[SshTransport]:
    """Open a transport and close it at the end."""
    with contextlib.closing(open_ssh("gpu-1", options, ask=ask)) as transport:
        yield transport


def failing(
    kind: type[HostError], options: SshOptions, *, ask: Callable[[str], str] | None = None
) -> HostError:
    """Return the error of an attempt to connect, after looking at what all of them have."""
    with pytest.raises(kind) as caught:
        open_ssh("gpu-1", options, ask=ask)
    assert type(caught.value) is kind
    assert caught.value.where == "gpu-1"
    assert caught.value.hint
    return caught.value


def works(options: SshOptions, *, ask: Callable[[str], str] | None = None) -> bool:
    """Connect and run a command."""
    with opened(options, ask=ask) as transport:
        return transport.run(("echo", "hi")).text == "hi"


class TestHostKeys:
    def test_unknown(self, sshd: Sshd, tmp_path: Path) -> None:
        error = failing(HostKeyError, sshd.options(known_hosts=str(tmp_path / "none")))
        assert sshd.fingerprint() in error.what
        assert f'host_key = "{sshd.fingerprint()}"' in error.hint
        assert f"ssh-keyscan -p {sshd.port} 127.0.0.1" in error.hint
        assert "accept-new" in error.hint
        assert not (tmp_path / "none").exists()

    def test_changed(self, sshd: Sshd, tmp_path: Path) -> None:
        other = make_key(tmp_path / "other")
        public = Path(f"{other}.pub").read_text()
        known = tmp_path / "known"
        known.write_text(f"# first line\n[127.0.0.1]:{sshd.port} {public}")
        for policy in ("strict", "accept-new"):
            options = sshd.options(known_hosts=str(known), host_keys=policy)
            error = failing(HostKeyError, options)
            said = subprocess.run(
                ("ssh-keygen", "-lf", f"{other}.pub"), check=True, capture_output=True
            )
            assert said.stdout.decode().split()[1] in error.what
            assert sshd.fingerprint() in error.what
            assert f"{known}:2" in error.what
            assert "ssh-keygen -R" in error.hint

    def test_pinned(self, sshd: Sshd, tmp_path: Path) -> None:
        nothing = str(tmp_path / "none")
        pin = sshd.fingerprint()
        assert works(sshd.options(known_hosts=nothing, host_key=pin))
        error = failing(HostKeyError, sshd.options(host_key="SHA256:" + "A" * 43))
        assert pin in error.what
        assert "A" * 43 in error.what

    def test_a_pin_finds_a_key_of_another_kind(self, start: Start, tmp_path: Path) -> None:
        server = start(host_keys=("ed25519", "ecdsa", "rsa"))
        nothing = str(tmp_path / "none")
        for kind in ("ed25519", "ecdsa", "rsa"):
            pin = server.fingerprint(kind)
            assert works(server.options(known_hosts=nothing, host_key=pin))

    def test_a_known_key_of_another_kind_is_asked_for(self, start: Start, tmp_path: Path) -> None:
        server = start(host_keys=("ed25519", "rsa"))
        known = tmp_path / "known"
        public = (server.folder / "host_rsa.pub").read_text()
        known.write_text(f"[127.0.0.1]:{server.port} {public}")
        assert works(server.options(known_hosts=str(known)))

    def test_hashed_entries(self, sshd: Sshd, tmp_path: Path) -> None:
        known = Path(shutil.copy(sshd.folder / "known_hosts", tmp_path / "known"))
        command = ("ssh-keygen", "-H", "-f", str(known))
        subprocess.run(command, check=True, capture_output=True)
        assert "127.0.0.1" not in known.read_text()
        assert works(sshd.options(known_hosts=str(known)))

    @pytest.mark.parametrize("policy", ["strict", "accept-new"])
    def test_revoked(self, sshd: Sshd, tmp_path: Path, policy: str) -> None:
        good = (sshd.folder / "known_hosts").read_text()
        known = tmp_path / "known"
        known.write_text(good + "@revoked * " + good.partition(" ")[2])
        options = sshd.options(known_hosts=str(known), host_keys=policy)
        assert f"revoked by {known}:2" in failing(HostKeyError, options).what

    def test_a_certificate_authority_is_said_to_be_unsupported(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        known = tmp_path / "known"
        known.write_text("@cert-authority " + (sshd.folder / "known_hosts").read_text())
        for policy in ("strict", "accept-new"):
            options = sshd.options(known_hosts=str(known), host_keys=policy)
            assert "host certificates are not supported" in failing(UnjudgedKeyError, options).what

    def test_accept_new_records_once(self, sshd: Sshd, tmp_path: Path) -> None:
        known = tmp_path / "ssh" / "known"
        options = sshd.options(known_hosts=str(known), host_keys="accept-new")
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: works(options), range(8)))
        lines = (sshd.folder / "known_hosts").read_text()
        assert known.read_text() == lines
        assert known.stat().st_mode & 0o777 == 0o600
        assert works(sshd.options(known_hosts=str(known)))

    def test_accept_new_keeps_what_is_there(self, sshd: Sshd, tmp_path: Path) -> None:
        known = tmp_path / "known"
        known.write_text("# no line end")
        assert works(sshd.options(known_hosts=str(known), host_keys="accept-new"))
        assert known.read_text() == f"# no line end\n{(sshd.folder / 'known_hosts').read_text()}"


class TestLogin:
    @pytest.fixture(autouse=True)
    def _no_agent(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))

    def test_wrong_user(self, sshd: Sshd) -> None:
        error = failing(AuthError, sshd.options(user="nosuchuser"))
        assert "rejected user 'nosuchuser'" in error.what
        assert "client" in error.what
        assert "publickey" in error.what

    @pytest.mark.parametrize("user", ["ACME\\jane", "jane@corp.example", "jane doe", "box$"])
    def test_the_name_comes_to_sshd_as_it_is(self, sshd: Sshd, user: str) -> None:
        options = sshd.options(user=user)
        assert f"rejected user '{user}'" in failing(AuthError, options).what
        if shutil.which("ssh"):
            subprocess.run((*command_line(options), "true"), capture_output=True, check=False)
        log = (sshd.folder / "log").read_text().replace("\\\\", "\\")
        assert log.count(f"Invalid user {user} from") == (2 if shutil.which("ssh") else 1)

    def test_wrong_key(self, sshd: Sshd, tmp_path: Path) -> None:
        key = str(make_key(tmp_path / "stranger"))
        assert f"key {key}" in failing(AuthError, sshd.options(identity_file=key)).what

    def test_no_key(self, sshd: Sshd) -> None:
        assert "no key to try" in failing(AuthError, sshd.options(identity_file=None)).what

    def test_key_files_that_cannot_be_used(self, sshd: Sshd, tmp_path: Path) -> None:
        def said(path: Path) -> str:
            return str(failing(AuthError, sshd.options(identity_file=str(path))))

        key = Path(shutil.copy(sshd.folder / "client", tmp_path / "key"))
        assert "there is no key file" in said(tmp_path / "missing")
        assert "a directory" in said(tmp_path)
        assert "a public key" in said(sshd.folder / "client.pub")
        key.chmod(0o644)
        assert "readable by others" in said(key)
        key.write_text("nonsense")
        key.chmod(0o600)
        assert "not a private key" in said(key)
        encrypted = make_key(tmp_path / "locked", passphrase="open sesame")
        assert "encrypted" in said(encrypted)
        assert f"ssh-add {encrypted}" in said(encrypted)

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_an_encrypted_key_asks_for_its_passphrase(
        self, start: Start, tmp_path: Path, kind: str
    ) -> None:
        server = start()
        key = make_key(tmp_path / "locked", kind, "open sesame")
        shutil.copy(f"{key}.pub", server.folder / "authorized_keys")
        options = server.options(identity_file=str(key))
        asked: list[str] = []

        def ask(prompt: str) -> str:
            asked.append(prompt)
            return "open sesame"

        assert works(options, ask=ask)
        assert asked == [f"Passphrase for {key}: "]
        assert "wrong passphrase" in failing(AuthError, options, ask=lambda _: "no").what

    @pytest.fixture
    def agent(self, tmp_path: Path) -> Iterator[str]:
        """Yield the socket of an agent that holds no key yet."""
        path = str(tmp_path / "agent")
        child = subprocess.Popen(("ssh-agent", "-D", "-a", path), stdout=subprocess.DEVNULL)
        wait_for(lambda: Path(path).exists(), "the agent listens")
        yield path
        child.terminate()
        child.wait()

    def test_an_agent_holds_the_key(
        self, start: Start, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start()
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        for name in ("one", "two"):
            subprocess.run(("ssh-add", "-q", str(make_key(tmp_path / name))), check=True)
        shutil.copy(tmp_path / "two.pub", server.folder / "authorized_keys")
        assert works(server.options(identity_file=None))
        config = tmp_path / "config"
        config.write_text(f"IdentityFile {tmp_path}/one.pub\nIdentitiesOnly yes\n")
        options = server.options(identity_file=None, config_file=str(config))
        assert "agent key" in failing(AuthError, options).what
        config.write_text(f"IdentityFile {tmp_path}/two.pub\nIdentitiesOnly yes\n")
        assert works(options)
        config.write_text("IdentityAgent none\n")
        assert "no key to try" in failing(AuthError, options).what
        monkeypatch.delenv("SSH_AUTH_SOCK")
        config.write_text(f"IdentityAgent {agent}\n")
        assert works(options)

    def test_a_certificate(self, start: Start, tmp_path: Path) -> None:
        authority = make_key(tmp_path / "authority")
        server = start(f"TrustedUserCAKeys {authority}.pub")
        (server.folder / "authorized_keys").write_text("")
        key = make_key(tmp_path / "key")
        user = server.options().user or ""
        sign = ("ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n", user)
        options = server.options(identity_file=str(key))
        assert "key" in failing(AuthError, options).what
        subprocess.run((*sign, "-V", "-2w:-1w", f"{key}.pub"), check=True)
        assert f"certificate {key}-cert.pub" in failing(AuthError, options).what
        subprocess.run((*sign, f"{key}.pub"), check=True)
        assert works(options)

    def test_too_many_keys(self, start: Start, tmp_path: Path) -> None:
        server = start("MaxAuthTries 2")
        keys = [make_key(tmp_path / f"k{n}") for n in range(4)]
        config = tmp_path / "config"
        config.write_text("".join(f"IdentityFile {key}\n" for key in keys))
        options = server.options(identity_file=None, config_file=str(config))
        assert "IdentitiesOnly" in failing(AuthError, options).hint


class Person:
    """Somebody at the terminal: what was asked of them, and what they were told."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.told: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.answer

    def tell(self, text: str) -> None:
        self.told.append(text)


class TestKeysThatNeedSomebody:
    @pytest.fixture(autouse=True)
    def _home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ssh").mkdir()

    @contextlib.contextmanager
    def agent(self, monkeypatch: pytest.MonkeyPatch, *keys: HeldKey) -> Iterator[FakeAgent]:
        with fake_agent(Path(os.environ["HOME"]) / "agent", *keys) as agent:
            monkeypatch.setenv("SSH_AUTH_SOCK", agent.path)
            yield agent

    @pytest.fixture
    def client(self, sshd: Sshd) -> paramiko.PKey:
        return paramiko.Ed25519Key.from_private_key_file(str(sshd.folder / "client"))

    def test_keys_that_the_host_does_not_take_are_not_used(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start()
        good = paramiko.Ed25519Key.from_private_key_file(str(server.folder / "client"))
        others = [HeldKey(TokenKey().blob, f"token-{n}") for n in range(3)]
        with self.agent(monkeypatch, *others, HeldKey(good.asbytes(), "good", good)) as agent:
            assert works(server.options(identity_file=None))
        assert agent.asked == ["good"]

    @pytest.mark.parametrize("hangs", [False, True])
    def test_a_key_that_does_not_sign_is_skipped(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, hangs: bool
    ) -> None:
        monkeypatch.setattr("raycluster.hosts.transports.ssh_agent._SIGN_SECONDS", 0.5)
        monkeypatch.setattr("raycluster.hosts.transports.ssh_agent._QUIET_SECONDS", 0.1)
        server = start("MaxAuthTries 1")
        good = paramiko.Ed25519Key.from_private_key_file(str(server.folder / "client"))
        token, other = TokenKey(), paramiko.ECDSAKey.generate()
        authorized = server.folder / "authorized_keys"
        authorized.write_text(
            f"{authorized.read_text()}{token.public}{other.get_name()} {other.get_base64()}\n"
        )
        first = HeldKey(token.blob, "token", hangs=hangs)
        keys = (first, HeldKey(other.asbytes(), "denied"), HeldKey(good.asbytes(), "good", good))
        person = Person()
        with self.agent(monkeypatch, *keys) as agent:
            assert works(server.options(identity_file=None), ask=person)
            assert agent.asked == ["token", "denied", "good"]
            assert "touch the security key" in person.told[0]
            assert "key token" in person.told[0]
            agent.keys.pop()
            error = failing(AuthError, server.options(identity_file=None), ask=person)
        why = "did not sign within 0.5 s" if hangs else "did not sign"
        assert "agent key token (the " in error.what
        assert why in error.what
        assert "ssh-add -X" in error.hint

    def test_an_agent_that_never_answers_is_named(
        self, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raycluster.hosts.transports.ssh_agent._AGENT_SECONDS", 0.2)
        path = Path(os.environ["HOME"]) / "mute"
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as mute:
            mute.bind(str(path))
            mute.listen()
            assert works(sshd.options())
            error = failing(AuthError, sshd.options(identity_file=None))
        assert f"agent {path} (no response within 0.2 s)" in error.what

    def test_a_security_key_of_an_agent_works(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server, token = start(), TokenKey()
        (server.folder / "authorized_keys").write_text(token.public)
        with self.agent(monkeypatch, HeldKey(token.blob, "token", token)):
            assert works(server.options(identity_file=None))

    def test_the_file_of_a_security_key_is_for_ssh_alone(self, start: Start) -> None:
        server, token = start(), TokenKey()
        path = Path(os.environ["HOME"]) / ".ssh" / "id_ed25519_sk"  # of the default ones
        path.write_text(token.file())
        path.chmod(0o600)
        options = server.options(identity_file=None)
        assert f"tried key {path}" in failing(AuthError, options).what
        (server.folder / "authorized_keys").write_text(token.public)
        error = failing(BeyondLibraryError, options)
        assert "only OpenSSH can use its security key" in error.what
        assert f"ssh-add {path}" in error.hint

    def test_a_passphrase_is_asked_for_keys_that_the_host_takes(self, start: Start) -> None:
        server, person = start(), Person("open sesame")
        for name in ("id_rsa", "id_ed25519"):
            make_key(Path(os.environ["HOME"]) / ".ssh" / name, name[3:], "open sesame")
        good = Path(os.environ["HOME"]) / ".ssh" / "id_ed25519"
        shutil.copy(f"{good}.pub", server.folder / "authorized_keys")
        assert works(server.options(identity_file=None), ask=person)
        assert person.asked == [f"Passphrase for {good}: "]
        person.answer = ""
        error = failing(AuthError, server.options(identity_file=None), ask=person)
        assert f"key {good} (encrypted)" in error.what
        assert f"ssh-add {good}" in error.hint

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_certificates_with_the_keys_of_an_agent(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key", kind)
        server = start(f"TrustedUserCAKeys {authority}.pub")
        (server.folder / "authorized_keys").write_text("")
        sign = ("ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n")
        subprocess.run((*sign, server.options().user or "", f"{key}.pub"), check=True)
        path = str(tmp_path / "agent")
        child = subprocess.Popen(("ssh-agent", "-D", "-a", path), stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: Path(path).exists(), "the agent listens")
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            subprocess.run(("ssh-add", "-q", str(key)), check=True)  # the certificate as well
            options = server.options(identity_file=None)
            assert works(options)
            certificate = Path(f"{key}-cert.pub").rename(tmp_path / "elsewhere")
            subprocess.run(("ssh-add", "-q", "-D"), check=True)
            subprocess.run(("ssh-add", "-q", str(key)), check=True)
            assert "agent key" in failing(AuthError, options).what
            config = tmp_path / "config"
            config.write_text(f"CertificateFile {certificate}\n")
            assert works(server.options(identity_file=None, config_file=str(config)))
            assert works(server.options(identity_file=str(key), config_file=str(config)))
        finally:
            child.terminate()
            child.wait()

    @pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512", "ssh-rsa"])
    def test_rsa_keys(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
    ) -> None:
        server = start(f"PubkeyAcceptedAlgorithms {algorithm}")
        key = make_key(tmp_path / "key", "rsa")
        shutil.copy(f"{key}.pub", server.folder / "authorized_keys")
        private = paramiko.RSAKey.from_private_key_file(str(key))
        with self.agent(monkeypatch, HeldKey(private.asbytes(), "held", private)):
            for options in (server.options(identity_file=str(key)), server.options()):
                if algorithm == "ssh-rsa":
                    error = failing(AuthError, options)
                    assert "which the host accepts only with SHA-1" in error.what
                    assert "PubkeyAcceptedAlgorithms" in error.hint
                else:
                    assert works(options)

    def test_two_keys_where_the_host_wants_two(self, start: Start, tmp_path: Path) -> None:
        server = start("AuthenticationMethods publickey,publickey")
        second = make_key(tmp_path / ".ssh" / "id_ed25519")
        options = server.options(identity_file=None, config_file=str(tmp_path / "config"))
        (tmp_path / "config").write_text(
            f"IdentityFile {server.folder}/client\nIdentityFile {second}\n"
        )
        assert "requires one more" in failing(AuthError, options).what
        with (server.folder / "authorized_keys").open("a") as file:
            file.write(Path(f"{second}.pub").read_text())
        assert works(options)


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
            error = failing(UnreachableError, sshd.options(port=port, connect_timeout=1.0))
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
            open_ssh("gpu-1", sshd.options(host=host))

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
        error = failing(UnreachableError, options(command, connect_timeout=1.0))
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
                transport.run(("true",), timeout=0.3)
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
            transport.run(("true",), timeout=1)


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
        monkeypatch.setattr(ssh_options, "SILENCE_S", 0.6)
        with opened(start().options()) as transport:
            assert transport.run(("sleep", "2")).exit_code == 0
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
        wait_for(lambda: threading.active_count() <= before, "all threads have ended", 2)


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
