"""Host keys of SSH: known, unknown, pinned, revoked, certified."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycluster.core.errors import (
    HostKeyError,
    UnjudgedKeyError,
)
from tests.contract.ssh_client import Start, failing, works
from tests.contract.sshd import SSHD, Sshd, make_key

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)


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
