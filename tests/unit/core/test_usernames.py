from __future__ import annotations

import pytest

from raycluster.core.usernames import LONGEST, wrong_user


@pytest.mark.parametrize(
    "name", ["root", "me", "a.b-c_d", "DOMAIN+user", "ü", "a@b", "host$", "x" * LONGEST]
)
def test_names_that_sshd_may_know(name: str) -> None:
    assert wrong_user(name) == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "expected"),
        ("x" * (LONGEST + 1), "at most"),
        ("-oProxyCommand=x", "begin with `-`"),
        ("me@", "set the address"),
        ("@host", "set the address"),
        ("a\nb", "line breaks"),
        ("a\u2028b", "line breaks"),
        ("a;b", "shell signs"),
        ("$(id)", "shell signs"),
        ("a:b", "shell signs"),
        ("a/b", "shell signs"),
        ("a\\", "shell signs"),
        (" a", "spaces"),
        ("a -b", "spaces"),
        ("a\u00a0b", "spaces"),
    ],
)
def test_names_that_a_program_on_the_way_takes_for_something_else(name: str, why: str) -> None:
    assert why in wrong_user(name)
