"""`status --watch` on a terminal, over SSH to a host that goes away and comes back."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.contract.sshd import SSHD, Sshd
from tests.terminal import CTRL_C, FIRST_SCREEN, OTHER_SCREEN, SHOW, on_terminal
from tests.unit.engine import Ports, engines

if SSHD is None:
    pytest.skip("there is no sshd", allow_module_level=True)

PROGRAM = Path(sys.executable).with_name("raycluster")


def write_spec(folder: Path, sshd: Sshd, ports: Ports) -> Path:
    """Write a spec whose only host is behind the sshd."""
    head: dict[str, object] = {
        "host": "127.0.0.1",
        "port": sshd.port,
        "user": getpass.getuser(),
        "identity_file": str(sshd.folder / "client"),
        "known_hosts": str(sshd.folder / "known_hosts"),
        "gpus": 0,
    }
    tables: dict[str, dict[str, object]] = {
        "[cluster]": {"name": "watched"},
        "[runtime]": {"kind": "native", "python": sys.executable},
        "[head]": head,
        "[[models]]": {"name": "tiny"},
        "[ports]": {"replica_min": ports.replicas[0], "replica_max": ports.replicas[-1]},
    }
    path = folder / "cluster.toml"
    path.write_text(
        "".join(
            f"{title}\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for title, table in tables.items()
        )
    )
    return path


def plain(text: str) -> str:
    """Return what was shown, without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_watch_survives_a_host_that_goes_away(tmp_path: Path) -> None:
    ports = Ports()
    sshd = Sshd(tmp_path / "sshd").start()
    argv = (PROGRAM, "status", "--watch", "--interval", "0.5", write_spec(tmp_path, sshd, ports))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    with engines(ports.http[0]) as [engine]:
        engine.took(5, running=7)
        screen = on_terminal(argv, env=env)
        try:
            screen.read(lambda text: "watched: is not up" in plain(text))
            screen.read(lambda text: re.search(r"tiny +absent +- +- +7 ", plain(text)))
            sshd.signal_workers(signal.SIGKILL)
            sshd.stop()
            screen.read(lambda text: re.search(r"head +head .*unreachable", plain(text)))
            mark = len(screen.seen)
            sshd.start()
            screen.read(lambda text: "watched: is not up" in plain(text[mark:]))
            screen.press(CTRL_C)
        finally:
            code, text = screen.close()
            sshd.stop()
    assert code == 130
    assert text.index(OTHER_SCREEN) < text.rindex(FIRST_SCREEN) < len(text)
    assert text.rindex(SHOW) > text.index(OTHER_SCREEN)
    assert "Traceback" not in text
