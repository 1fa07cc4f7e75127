"""Runs beside a real systemd of a user: `python under_systemd.py HOME` ends with 0 if it works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from raycluster.core.interfaces import Process, Versions
from raycluster.core.wait import wait_for
from raycluster.hosts.runtimes.native import NativeRuntime
from raycluster.hosts.transports.local import LocalTransport

SCRIPT = "setsid sh -c 'trap : TERM; echo $$ >$0; while :; do sleep 1; done' $0 & wait"


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    assert wait_for(lambda: condition() or None, timeout=30) is not None


def main(home: Path) -> None:
    """Start, kill, replace and remove a process."""
    runtime = NativeRuntime("box", "50%", LocalTransport("box"), python=sys.executable)
    folder, units = home / ".raycluster/50%/roles/p", home / ".config/systemd/user"
    told: list[str] = []

    def state() -> tuple[int, str]:
        [found] = runtime.observe()
        supervisor = json.loads((folder / "state.json").read_text())["supervisor"]
        return int(supervisor[0]), found.health

    def start(*argv: str) -> None:
        runtime.start(Process("p", argv), Versions(), {}, told.append)

    note = home / "orphan"
    start("sh", "-c", SCRIPT, str(note))
    assert told == []
    assert len(list(units.glob("rc-*-p.service"))) == 1
    until(note.exists)
    orphan, (former, _) = int(note.read_text()), state()
    note.unlink()
    os.kill(former, signal.SIGKILL)
    until(lambda: state()[0] != former and state()[1] == "running" and note.exists())
    assert not Path(f"/proc/{orphan}").exists()
    assert int(note.read_text()) != orphan
    start("sleep", "1000")
    assert state()[1] == "running"
    assert runtime.remove()[:2] == ("process p", "systemd unit of each")
    assert [each for each in units.rglob("*") if not each.is_dir()] == []
    listed = subprocess.check_output(["systemctl", "--user", "list-units", "--all", "rc-*"])
    assert b"0 loaded units" in listed
    assert runtime.remove() == ()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
