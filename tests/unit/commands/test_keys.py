"""What `keys` lists and prints, and what it refuses."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raycluster.cli import app
from raycluster.core.errors import UsageError
from raycluster.spec import read_spec

KEYS = """\
[[models]]
name = "org/a"
[gateway]
api_keys = { zoe = "env:ZOE" }
[gateway.keys.alice]
key = "cmd:print-the-secret"
models = ["org/a"]
tokens_per_day = 1000000
priority = "low"
expires = 2020-01-01
"""


def spec(folder: Path, more: str = "") -> Path:
    path = folder / "cluster.toml"
    path.write_text(f'cluster.name = "q"\n[head]\ntransport = "local"\n{more}')
    return path


def run(*arguments: str) -> tuple[str, BaseException | None]:
    done = CliRunner().invoke(app, ["keys", *arguments])
    return done.stdout, done.exception


def test_it_lists_keys_and_limits_without_their_sources(tmp_path: Path) -> None:
    path = str(spec(tmp_path, KEYS))
    out, error = run("list", "--spec", path)
    assert error is None
    head, alice, zoe = out.splitlines()
    assert head.split()[0] == "KEY"
    assert alice.split() == [
        *("alice", "org/a", "1,000,000", "low", "2020-01-01T00:00:00+00:00", "(expired)")
    ]
    assert zoe.split() == ["zoe", "all", "normal"]
    assert "print-the-secret" not in out
    told = json.loads(run("--spec", path, "--json")[0])
    assert [(key["key"], key["tokens_per_day"], key["expired"]) for key in told["keys"]] == [
        ("alice", 1000000, True),
        ("zoe", None, False),
    ]


def test_without_keys_it_lists_none(tmp_path: Path) -> None:
    path = str(spec(tmp_path))
    assert json.loads(run("list", "--json", "--spec", path)[0])["keys"] == []
    assert len(run("--spec", path)[0].splitlines()) == 1


@pytest.mark.parametrize("more", ["", "[gateway]\n", KEYS])
@pytest.mark.parametrize("name", ["bob", "b.o-b_2", "2bob"])
def test_the_lines_for_a_new_key_make_one(tmp_path: Path, more: str, name: str) -> None:
    path = spec(tmp_path, more)
    before = path.read_text()
    out, error = run("new", name, "--spec", str(path))
    assert error is None
    assert path.read_text() == before
    export, lines = out.split("\n\n", 1)
    found = re.search(r"^export ([A-Z][A-Z0-9_]*)=(sk-[\w-]{43})$", export, re.MULTILINE)
    assert found
    path.write_text(f"{before}\n{lines}")
    gate = read_spec(path).gateway
    assert gate
    assert gate.keys[name].key == f"env:{found[1]}"
    assert run("new", name, "--spec", str(spec(tmp_path, more)))[0] != out
    assert tomllib.loads(lines)["gateway"]["keys"][name]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("new",), "needs the owner's name"),
        (("list", "bob"), "takes no name"),
        (("new", "bob", "--json"), "--json"),
        (("new", "a b"), "letters, digits"),
        (("new", ""), "letters, digits"),
        (("new", "x" * 65), "letters, digits"),
        (("new", "alice"), "has a key already"),
        (("new", "zoe"), "has a key already"),
    ],
)
def test_what_makes_no_key_is_an_error(
    tmp_path: Path, arguments: tuple[str, ...], what: str
) -> None:
    out, error = run(*arguments, "--spec", str(spec(tmp_path, KEYS)))
    assert isinstance(error, UsageError)
    assert what in str(error)
    assert out == ""
