"""Runs on the hosts: units by which the user's own systemd keeps a cluster's supervisors.

They are used where that manager runs without a login (it lingers); elsewhere cron does the same
more slowly. Standard library alone, Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from raycluster.hosts.runtimes.native_place import SYSTEM_PATH, Place, ProblemError, home

LINGER = "/var/lib/systemd/linger"
_UNIT = """\
[Unit]
Description=raycluster {owner}: {role}
StartLimitIntervalSec=0
ConditionPathExists={there}

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStopSec=20
OOMPolicy=continue
TasksMax=infinity

[Install]
WantedBy=default.target
"""
# A supervisor that is told to stop ends with 0 and stays away. One that is killed is started again
# when all that it left is gone. OOMPolicy: one process without memory is not the whole node.


def lingers() -> bool:
    """Tell whether the user's manager answers, and goes on when nobody is logged in."""
    name = _escaped(pwd.getpwuid(os.geteuid()).pw_name)
    return Path(LINGER, name).exists() and not _systemctl("show-environment").returncode


def _escaped(name: str) -> str:
    """Return a user's name as logind names the file about them: `ACME\\jane` with two of these."""
    plain = range(0x20, 0x7F)
    letters = (chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(name))
    return "".join(f"\\{letter}" if letter in "\\\"'" else letter for letter in letters)


def add_unit(at: Place, role: str) -> None:
    """Let the manager start a role's supervisor, now and at boot. Raises ProblemError."""
    words = (sys.executable, "-I", "-S", at.root / "supervisor.py", "--here", at.role(role))
    command = " ".join(map(_quoted, words))
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{at.temp.name}-{role}.service"
    owner = at.owner.replace("%", "%%")
    there = str(at.role(role) / "launch.json").replace("%", "%%")  # units may lie in a shared home
    text = _UNIT.format(owner=owner, role=role, command=command, there=there)
    (folder / name).write_text(text)
    for order in (("daemon-reload",), ("enable", name), ("restart", name)):
        done = _systemctl(*order)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ProblemError(f"systemctl --user {' '.join(order)}: {said}")


def remove_units(at: Place, role: str) -> bool:
    """Take away the unit of a role, or of all for ""; return whether there was any."""
    units = list(_folder().glob("{}-{}.service".format(at.temp.name, role or "*")))
    for unit in units:
        _systemctl("disable", "--now", unit.name)
        for file in (unit, unit.parent / "default.target.wants" / unit.name):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
    if units:
        _systemctl("daemon-reload")
    return bool(units)


def _folder() -> Path:
    return home() / ".config/systemd/user"


def _quoted(word: object) -> str:
    text = str(word).replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format(text.replace("%", "%%").replace("$", "$$"))


def _systemctl(*order: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("systemctl", path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)
    if not program:
        return subprocess.CompletedProcess(order, 127, b"", b"there is no systemctl")
    env = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            [program, "--user", *order], env=env, capture_output=True, check=False, timeout=40
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(order, 124, b"", b"it does not respond")
