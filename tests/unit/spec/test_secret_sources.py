"""Where secrets come from, and that no error shows one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raycluster.core.errors import SecretError
from raycluster.core.interfaces import Secret
from raycluster.spec.secret_sources import LARGEST, bearer, resolve

PATH = {"PATH": "/usr/bin:/bin"}


def one(source: str, environ: dict[str, str] | None = None, dotenv: Path | None = None) -> str:
    found = resolve({"KEY": source}, environ or PATH, dotenv=dotenv)
    assert str(found) == "{'KEY': ***}"
    return found["KEY"].reveal()


@pytest.mark.parametrize(
    ("content", "value"),
    [("s3cret", "s3cret"), ("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), ("a\n\n", "a\n")],
)
def test_a_file_loses_one_line_end(tmp_path: Path, content: str, value: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content.encode())
    assert one(f"file:{file}") == value


def test_a_file_may_be_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("s3cret\n")
    assert one("file:~/token") == "s3cret"


def test_a_variable_comes_from_the_environment_then_from_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("A=file\nB='b b'\n")
    assert one("env:A", {"A": "env"}, dotenv) == "env"
    assert one("env:B", {"A": "env"}, dotenv) == "b b"
    assert one("env:A", {"A": "x"}, tmp_path / "none") == "x"


def test_a_command_is_run_by_the_shell() -> None:
    assert one("cmd:printf '%s\\n' \"$KEY\" | tr a-z A-Z", {**PATH, "KEY": "abc"}) == "ABC"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("env:NOPE", "the variable NOPE is not set\n  next: export NOPE=..."),
        ("env:EMPTY", "the variable EMPTY is empty\n  next: export EMPTY=..."),
        ("file:/nonexistent/token", "/nonexistent/token cannot be read: No such file or directory"),
        ("file:/", "/ cannot be read: Is a directory"),
        ("file:~nobody-by-this-name/x",
         "~nobody-by-this-name/x cannot be read: no home folder for it"),
        ("file:/dev/null", "its source is empty"),
        ("file:/dev/zero", f"/dev/zero is larger than {LARGEST // 1024} KiB"),
        ("cmd:true", "its source is empty"),
        ("cmd:echo", "its source is empty"),
        ("cmd:printf '\\000x'", "its source contains a null byte, which a variable cannot contain"),
        ("cmd:printf '\\377'", "its command's output is not UTF-8"),
        ("cmd:echo hunter2; echo hunter2 >&2; exit 3", "its command exited with status 3\n"
         "  next: run it in a shell to see its output"),
        ("hunter2", "env:, file: or cmd: is expected"),
        ("env:hunter-2", "the text after `env:` is not a valid variable name"),
        ("env:BYTES", "its source is not UTF-8"),
        ("file:a\0b", "that is not a valid file name"),
        ("cmd:cat /dev/zero", f"its command's output is larger than {LARGEST // 1024} KiB"),
    ],
)  # fmt: skip
def test_a_bad_source_names_the_key_and_shows_no_value(source: str, said: str) -> None:
    with pytest.raises(SecretError) as caught:
        one(source, {**PATH, "EMPTY": "", "BYTES": "hunter2\udcff"})
    assert str(caught.value) == f"secret KEY: {said}"


def test_a_command_that_hangs_is_ended_with_what_it_started() -> None:
    began = time.monotonic()
    with pytest.raises(SecretError, match=r"secret KEY: its command took longer than 0\.2 s"):
        resolve({"KEY": "cmd:sleep 60 | cat"}, PATH, timeout=0.2)
    assert time.monotonic() - began < 30


ODD = ["hunter2é", "hunter2\n", "hunter2\r\nX: y", "a b", "\0", "", "\x7f", "\u2028", "h" * 8193]
"""What no header can carry."""


@pytest.mark.parametrize("value", ODD)
def test_a_secret_that_no_header_can_carry_is_not_shown(value: str) -> None:
    with pytest.raises(
        SecretError, match="secret KEY: its value cannot be used in a header"
    ) as caught:
        bearer("KEY", Secret(value))
    assert not value or value not in f"{caught.value!r} {caught.value}"
    assert caught.value.__cause__ is None


def test_a_secret_in_a_header() -> None:
    assert bearer("KEY", Secret("sk-~!8")) == {"authorization": "Bearer sk-~!8"}
