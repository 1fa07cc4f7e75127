"""Hosts that let us in and run something else than our commands: their own words are the error."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycluster.core.errors import NotRunError
from raycluster.hosts.transports import ssh
from raycluster.hosts.transports.ssh import SshTransport, open_ssh
from tests.contract.sshd import SSHD, Login, Sshd

if SSHD is None:
    pytest.skip("needs OpenSSH's server", allow_module_level=True)

LOG_IN = 'ForceCommand echo \'Please login as the user "ubuntu" rather than "root".\'; exit 142'


@contextlib.contextmanager
def opened(server: Sshd) -> Iterator[SshTransport]:
    """Start a server and yield a connection to it."""
    server.start()
    try:
        with contextlib.closing(open_ssh("gpu-1", server.options())) as transport:
            yield transport
    finally:
        server.stop()


def login_of(
    folder: Path, shell: str = "/bin/bash", bashrc: str = "", *, expired: bool = False
) -> Login:
    """Return a login with such a start-up file."""
    home = folder / "home"
    home.mkdir()
    (home / ".bashrc").write_text(bashrc)
    return Login(home, shutil.which(shell) or shell, expired=expired)


@pytest.mark.parametrize(
    ("extra", "words", "cure"),
    [
        (LOG_IN, 'login as the user "ubuntu"', 'set user = "ubuntu"'),
        ("ForceCommand internal-sftp", "sftp connections only", "ForceCommand internal-sftp"),
        ("ForceCommand /bin/false", "printed nothing", "ForceCommand"),
        ("ForceCommand echo Hi; echo there >&2; cat", "Hi / there", "ForceCommand"),
        ("SetEnv PATH=/nowhere", "sh: not found", "PATH"),
        ("ChrootDirectory /run/sshd", "No such file or directory", "ChrootDirectory"),
    ],
)
def test_a_forced_command(tmp_path: Path, extra: str, words: str, cure: str) -> None:
    with opened(Sshd(tmp_path, extra)) as transport:
        for content in (b"", b"secret"):
            with pytest.raises(NotRunError) as caught:
                transport.run(("true",), input=content)
            assert words in caught.value.what
            assert cure in caught.value.hint
            assert caught.value.where == "gpu-1"
            assert "secret" not in str(caught.value)


@dataclass(frozen=True)
class Odd:
    """A login, and what an error has to say of it."""

    words: str
    cure: str
    shell: str = "/bin/bash"
    bashrc: str = ""
    expired: bool = False


@pytest.mark.parametrize(
    "odd",
    [
        Odd("not available", "--shell /bin/sh", shell="/usr/sbin/nologin"),
        Odd("restricted", "restricted", shell="/bin/rbash"),
        Odd("Password change required", "change the password", expired=True),
        Odd("Oh", "`exit`", bashrc="echo Oh; exit 3"),
        Odd("printed nothing", "exec", bashrc="exec zsh"),
        Odd("", "redirects standard error", bashrc="exec 2>/dev/null"),
        Odd("within 2 s", "waits for input", bashrc="while kill -0 $PPID; do sleep 0.1; done"),
    ],
    ids=lambda odd: odd.bashrc or odd.words,
)
@pytest.mark.usefixtures("_root")
def test_a_login_that_runs_no_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Odd
) -> None:
    monkeypatch.setattr(ssh, "BEGIN_SECONDS", 2.0)
    login = login_of(tmp_path, odd.shell, odd.bashrc, expired=odd.expired)
    server = Sshd(tmp_path / "sshd", "UsePAM yes" if odd.expired else "", login=login)
    with opened(server) as transport, pytest.raises(NotRunError) as caught:
        transport.run(("true",))
    assert odd.words in caught.value.what
    assert odd.cure in caught.value.hint


@pytest.fixture
def _root() -> None:
    if Path("/proc/self/status").read_text().find("\nUid:\t0\t") < 0:
        pytest.skip("needs root, for a login shell and a home of its own")


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize("eats", ["printf 'Your name? '; read x", "cat >/dev/null", "exec zsh"])
def test_input_is_sent_to_the_command_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eats: str
) -> None:
    monkeypatch.setattr(ssh, "BEGIN_SECONDS", 2.0)
    got = tmp_path / "home" / "got"
    kept = eats.replace("x", f'x; echo "$x" >{got}', 1) if "read" in eats else eats
    server = Sshd(tmp_path / "sshd", login=login_of(tmp_path, bashrc=kept))
    with opened(server) as transport:
        with contextlib.suppress(NotRunError):  # `read` is no harm where nothing is sent
            transport.run(("true",))
        for _ in range(2):  # the second time without a wait
            with pytest.raises(NotRunError) as caught:
                transport.run(("cat",), input=b"secret")
            assert "start-up file" in caught.value.hint
        assert "Your name?" in caught.value.what or "read" not in eats
    assert not got.exists() or got.read_text() == "\n"


@pytest.mark.usefixtures("_root")
def test_a_start_up_file_that_reads_for_a_moment_gets_none_of_the_input(tmp_path: Path) -> None:
    got = tmp_path / "home" / "got"
    server = Sshd(
        tmp_path / "sshd", login=login_of(tmp_path, bashrc=f"read -t 0.2 x && echo $x >{got}")
    )
    with opened(server) as transport:
        assert transport.run(("echo", "hi")).text == "hi"
        for content in (b"secret\nsecret", b"secret", bytes(300_000)):
            assert transport.run(("cat",), input=content).stdout == content
    assert "secret" not in got.read_text()


@pytest.mark.usefixtures("_root")
def test_what_a_start_up_file_leaves_running_holds_nobody_up(tmp_path: Path) -> None:
    left = "{ sleep 30; echo late; } &\n"
    with opened(Sshd(tmp_path / "sshd", login=login_of(tmp_path, bashrc=left))) as transport:
        began = time.monotonic()
        for _ in range(12):  # more than sshd's MaxSessions
            assert transport.run(("echo", "hi")).stdout == b"hi\n"
        assert time.monotonic() - began < 25


def test_a_wrapper_neither_adds_to_the_output_nor_hides_the_status(tmp_path: Path) -> None:
    wrapper = 'ForceCommand echo Welcome; sh -c "$SSH_ORIGINAL_COMMAND"; echo bye; echo bye >&2'
    with opened(Sshd(tmp_path, wrapper)) as transport:
        done = transport.run(("sh", "-c", "cat; echo no >&2; exit 3"), input=b"a")
        assert (done.stdout, done.stderr, done.exit_code) == (b"a", b"no\n", 3)
        assert list(transport.stream(("echo", "hi"))) == [("stdout", b"hi\n")]


@pytest.mark.parametrize("command", ["check", "plan", "up", "status"])
def test_the_other_hosts_findings_stay(tmp_path: Path, command: str) -> None:
    spec = tmp_path / "cluster.toml"
    good, odd = Sshd(tmp_path / "good"), Sshd(tmp_path / "odd", LOG_IN)
    with opened(good), opened(odd):
        hosts = [
            f'host = "127.0.0.1"\nport = {server.port}\nuser = "{server.options().user}"\n'
            f'identity_file = "{server.folder}/client"\nknown_hosts = "{server.folder}/known_hosts"'
            for server in (good, odd)
        ]
        spec.write_text(
            'cluster.name = "odd"\nruntime.kind = "native"\nmodels = [{ name = "m" }]\n'
            f'[head]\n{hosts[0]}\n[[workers]]\nname = "gpu-1"\n{hosts[1]}\n'
        )
        program = (sys.executable, "-c", "from raycluster.cli import main; main()")
        argv = (*program, command, str(spec), *(("--json",) if command != "up" else ()))
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode in (1, 3), said
    assert "Traceback" not in said
    assert 'login as the user "ubuntu"' in said.replace('\\"', '"')
    assert "gpu-1" in said
    if command == "check":
        findings = json.loads(done.stdout)["checks"]
        about_head = {f["subject"] for f in findings if f["host"] == "head" and f["passed"]}
        assert {"connection", "disk", "clock"} <= about_head
