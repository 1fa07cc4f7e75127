"""Questions on a real terminal: one press of Ctrl-C ends them, and the terminal is as it was."""

from __future__ import annotations

import getpass
import os
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sshd import SSHD, Sshd, make_key
from tests.terminal import CTRL_C, on_terminal

PROGRAM = (sys.executable, "-c", "from raycluster.cli import main; main()")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    if SSHD is None:
        pytest.skip("needs OpenSSH's server")
    server = Sshd(tmp_path / "sshd").start()
    yield server
    server.stop()


def echoes(terminal: int) -> bool:
    """Tell whether the terminal shows what is typed."""
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def spec(folder: Path, head: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(f'cluster.name = "c"\nmodels = [{{ name = "m" }}]\n[head]\n{head}\n')
    return path


@pytest.mark.parametrize("keys", [CTRL_C, "n\n", "\x04"])
def test_who_does_not_say_yes_ends_the_program_at_one_press(tmp_path: Path, keys: str) -> None:
    path = spec(tmp_path, 'host = "192.0.2.1"')
    asking = on_terminal((*PROGRAM, "down", path), env={**os.environ, "HOME": str(tmp_path)})
    asking.read(lambda seen: "Remove cluster c from head? [y/N]" in seen)
    asking.press(keys)
    status, seen = asking.close()
    assert status == (130 if keys == CTRL_C else 1), seen
    assert "Traceback" not in seen
    assert ("Aborted" in seen) == (keys != CTRL_C)


def test_ctrl_c_at_a_passphrase_lets_the_terminal_show_what_is_typed(
    tmp_path: Path, sshd: Sshd
) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    path = spec(
        tmp_path,
        f'host = "127.0.0.1"\nport = {sshd.port}\nuser = "{getpass.getuser()}"\n'
        f'identity_file = "{key}"\nknown_hosts = "{sshd.folder}/known_hosts"\n',
    )
    with (sshd.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    asking = on_terminal((*PROGRAM, "check", path), env={**environment, "HOME": str(tmp_path)})
    asking.read(lambda seen: "locked" in seen and not echoes(asking.end))
    asking.press(CTRL_C)
    assert asking.process.wait(timeout=60) == 130, asking.seen
    assert echoes(asking.end)
    assert "Traceback" not in asking.close()[1]
