"""Logins by SSH: agents, key files, certificates, passphrases, keys that need a person."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from raycluster.core.errors import (
    AuthError,
    BeyondLibraryError,
)
from raycluster.hosts.transports.ssh_command import command_line
from tests.contract.ssh_agent import FakeAgent, HeldKey, TokenKey, fake_agent
from tests.contract.ssh_client import Start, failing, works
from tests.contract.sshd import SSHD, Sshd, make_key, wait_for

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)


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
