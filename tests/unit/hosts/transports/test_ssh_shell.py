"""The line for a login shell, against every kind of shell that users have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raycluster.hosts.transports.ssh_output import OwnOutput
from raycluster.hosts.transports.ssh_shell import command_text, new_mark

KINDS = ("sh", "bash", "zsh", "fish", "tcsh", "bsd-csh", "mksh", "ksh93", "busybox")
SHELLS = [kind for kind in KINDS if shutil.which(kind)]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
AWKWARD = (
    "",
    "!x",
    "'",
    "^a",
    "a\n",
    "\x1e",
    "~",
    "=ls",
    "{a,b}",
    "$HOME",
    "\\",
    "été",
    "x" * 9000,
)


def ran(
    shell: str | Path,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    login: Mapping[str, str] | None = None,
) -> tuple[bytes, int | None]:
    """Return what a command wrote to stdout and ended with, run through a shell."""
    mark = new_mark()
    kind = (str(shell), "sh") if str(shell).endswith("busybox") else (str(shell),)
    done = subprocess.run(
        (*kind, "-c", command_text(argv, env, mark=mark)),
        capture_output=True,
        check=False,
        env=dict(os.environ if login is None else login),
    )
    output = OwnOutput(mark)
    output.feed("stderr", done.stderr)
    own = output.feed("stdout", done.stdout)
    assert output.ended, done.stderr
    return own, output.status


@pytest.mark.parametrize("shell", SHELLS)
@given(words=st.lists(WORDS, min_size=1, max_size=6))
@example(words=list(AWKWARD))
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_login_shell_gives_back_the_same_words(shell: str, words: list[str]) -> None:
    said, status = ran(shell, ("printf", "%s\\0", *words))
    assert (said.decode().split("\0")[:-1], status) == (words, 0)


def test_a_login_shell_is_told_nothing_that_shells_read_differently() -> None:
    text = command_text(("echo", *AWKWARD), {"A": "x 'y'\n"}, mark=new_mark())
    assert re.fullmatch(r"[A-Za-z0-9_./:,=\\ ;$()%*-]+", text)
    assert re.fullmatch(r"(?:[A-Za-z0-9_./:,= -]|\\[\\ ;$()%*])+", text)


@pytest.mark.parametrize("kind", ["dash", "bash", "zsh", "mksh", "ksh93", "busybox"])
def test_whatever_a_login_exports_the_environment_is_clean(kind: str, tmp_path: Path) -> None:
    program = shutil.which(kind)
    if program is None:
        pytest.skip(f"needs {kind}")
    (tmp_path / "sh").symlink_to(program)
    login = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "https_proxy": "http://me:pass word@proxy:3128",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C.UTF-8",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_TOKEN": "x",
        "PYTHONHOME": "/nowhere",
        "PYTHONPATH": "a\nexport HOME=/nowhere",
        "LD_PRELOAD": "/nowhere.so",
        "VLLM_USE_V1": "0",
        "HF_HOME": "/nowhere",
        "CUDA_VISIBLE_DEVICES": "",
        "BASH_ENV": "/nowhere",
        "SHELLOPTS": "errexit:nounset:xtrace",
    }
    said, status = ran("/bin/sh", ("env",), {"A": "b c\nd"}, login)
    assert status == 0
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_", "LOGNAME", "SHELLOPTS"}
    names = set(re.findall(r"^(\w+)=", said.decode(), re.MULTILINE)) - shells_own
    kept = {"PATH", "HOME", "https_proxy"}
    assert names == {*kept, "LC_ALL", "PYTHONUTF8", "RAYCLUSTER_RUN", "A"}
    for line in (*(f"{name}={login[name]}" for name in kept), "A=b c\nd", "LC_ALL=C"):
        assert line in said.decode()


def test_a_command_begins_in_the_home_folder(tmp_path: Path) -> None:
    home = tmp_path / "a 'b' $c é"
    home.mkdir()
    login = {**os.environ, "HOME": str(home), "CDPATH": "/usr"}
    assert ran("sh", ("pwd",), login=login) == (f"{home}\n".encode(), 0)


@pytest.mark.parametrize(
    ("argv", "env"), [((), {}), (("a\0b",), {}), (("a",), {"A B": "c"}), (("a",), {"": "c"})]
)
def test_what_cannot_be_run(argv: tuple[str, ...], env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"command|variable"):
        command_text(argv, env, mark=new_mark())
