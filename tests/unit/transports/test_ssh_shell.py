"""Quoting, against every shell that is installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycluster.transports.ssh_shell import command_text

SHELLS = [shell for shell in ("sh", "dash", "bash", "zsh", "ksh", "fish") if shutil.which(shell)]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@pytest.mark.parametrize("shell", SHELLS)
@given(words=st.lists(WORDS, min_size=1, max_size=6))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_login_shell_gives_back_the_same_words(shell: str, words: list[str]) -> None:
    text = command_text(("printf", "%s\\0", *words))
    done = subprocess.run((shell, "-c", text), check=True, capture_output=True)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_plain_words_stay_readable() -> None:
    assert command_text(("docker", "ps", "--all")) == "exec docker ps --all"


def test_backslashes_stand_outside_of_quotes() -> None:
    """Between single quotes fish reads them as escapes."""
    assert command_text(("a\\b", "\\", "")) == "exec 'a'\\\\'b' \\\\ ''"


def test_variables_come_first() -> None:
    text = command_text(("true",), {"A": "b c"}, mark="M=1")
    assert text == "exec env 'M=1' 'A=b c' true"


@pytest.mark.parametrize(
    ("argv", "env"), [((), {}), (("a\0b",), {}), (("a",), {"A B": "c"}), (("a",), {"": "c"})]
)
def test_what_cannot_be_run(argv: tuple[str, ...], env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"command|variable"):
        command_text(argv, env)
