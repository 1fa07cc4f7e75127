"""Kinds of hosts as people have them: their login shell, what its start-up files do, and names."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.sshd import Login, Sshd

EXPORTS = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "not-ours",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "LD_PRELOAD": "/nowhere.so",
    "VLLM_USE_V1": "0",
    "HF_HOME": "/nowhere",
    "CUDA_VISIBLE_DEVICES": "7",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "de_DE.UTF-8",
}
SPEAKS = r"""printf 'Welcome\n\033]0;title\007'
printf '\000\377\036\361binary, and no line end'
printf 'you have mail\nno line end' >&2
"""
ODD_NAME = 'it\'s "$HOME" % é;&'
ODDER_NAME = 'ACME\\jane\'s  ü[a]*? "$(id)" %h #;&~'
TEMPORARY = "tmp '$(id)ü"
STARTUP_FILES = {
    "bash": (".bashrc", f"{SPEAKS}trap 'echo bye' EXIT\ncd /\nset -x\n", "export {}={}\n"),
    "zsh": (".zshenv", f"{SPEAKS}trap 'echo bye' EXIT\ncd /\n", "export {}={}\n"),
    "fish": (".config/fish/config.fish", f"{SPEAKS}cd /\n", "set -gx {} {}\n"),
    "tcsh": (".tcshrc", "echo Welcome\nprintf no-line-end\ncd /\n", "setenv {} {}\n"),
    "bsd-csh": (".cshrc", "echo Welcome\nprintf no-line-end\ncd /\n", "setenv {} {}\n"),
    **dict.fromkeys(("dash", "mksh", "ksh93"), (".profile", SPEAKS, "export {}={}\n")),
}


@dataclass(frozen=True)
class OddHost:
    """A host with a login shell whose start-up files speak and export, and with a home of a name.

    `without` are programs of /usr/bin that are not there; with `busybox` it has the others' place.
    `tmp` is where /tmp leads, and TMPDIR a folder of such a name in it.
    """

    shell: str = "bash"
    name: str = ODD_NAME
    without: tuple[str, ...] = ()
    busybox: bool = False
    tmp: str = ""

    def sshd(self, folder: Path) -> Sshd:
        """Return its server, which has not started."""
        if os.geteuid() != 0:
            pytest.skip("needs root, for a login shell and a home of its own")
        shell = shutil.which(self.shell)
        if shell is None:
            pytest.skip(f"needs {self.shell}")
        folder.mkdir(parents=True, exist_ok=True)
        home = folder / self.name
        self._fill(home)
        locales = folder / "locales"
        locales.mkdir()
        german = ("localedef", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.UTF-8"))
        subprocess.run(german, check=True, capture_output=True)
        extra = f"PermitUserEnvironment yes\nSetEnv LOCPATH={locales} RAY_NAMESPACE=not-ours"
        login = Login(home, shell, self.without, busybox=self.busybox, tmp=self.tmp)
        return Sshd(folder / "sshd", extra, login=login)

    def _fill(self, home: Path) -> None:
        name, speaks, export = STARTUP_FILES[self.shell]
        values = {**EXPORTS, "TMPDIR": str(home / TEMPORARY)} if self.tmp else EXPORTS
        exports = "".join(export.format(k, shlex.quote(v)) for k, v in values.items())
        written = {
            name: speaks + exports,
            ".ssh/rc": SPEAKS,
            ".ssh/environment": "RAY_TMPDIR=/nowhere\n",
        }
        for path, text in written.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(text)
        (home / TEMPORARY).mkdir()


NOISY = OddHost()
BARE = OddHost("tcsh", ODDER_NAME, ("bash", "zsh", "python"), busybox=True, tmp="/t'mp  ü $(id)")
OTHERS = (
    # fish spells its home anew where its start-up file changes the locale
    OddHost("fish", ODD_NAME.replace("é", "e")),
    *(OddHost(kind) for kind in ("zsh", "bsd-csh", "dash", "mksh", "ksh93")),
)
