"""Tables are added to files that people write, or nothing happens to them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NoReturn

import pytest

from raycluster.core.errors import RayclusterError, UsageError
from raycluster.recipes.writing import append, lines_of

BLOCK = lines_of("models", {"name": "b", "hosts": None, "engine_args": {"x": 1}}, "why")
SPEC = (
    '# mine\n[cluster]\nname = "q" # here\n\n[[models]]\nname = "a"\n\n# the gateway\n[gateway]\n'
)


def accept(text: str) -> None:
    tomllib.loads(text)


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    "before",
    [
        SPEC.encode(),
        SPEC.encode().rstrip(),
        SPEC.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + SPEC.encode(),
        b"# only a comment",
        b"",
        b'[cluster]\nname = """\n[[models]]\n"""',
    ],
    ids=["whole", "no-end", "crlf", "bom", "comment", "empty", "text-like-a-table"],
)
def test_what_was_there_stays_byte_for_byte(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(before)
    path.chmod(0o640)
    append(path, BLOCK, accept)
    after = path.read_bytes()
    assert after.startswith(before)
    assert after.endswith(b"x = 1\r\n" if b"\r\n" in before else b"x = 1\n")
    assert (b"\r\n" in after) == (b"\r\n" in before)
    told = tomllib.loads(after.decode("utf-8-sig"))
    assert told["models"][-1] == {"name": "b", "engine_args": {"x": 1}}
    assert path.stat().st_mode & 0o777 == 0o640
    assert left(tmp_path) == ["cluster.toml"]


@pytest.mark.parametrize("text", ["\U0001f999 é", "\x7f\x01\n", '"]\\', "\u2028"])
def test_any_text_is_written_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("")
    table = {"name": text, "engine_args": {"x": {text: [text, 1.5, True]}}}
    append(path, lines_of("models", table, f"why\n[{text}]"), accept)
    assert tomllib.loads(path.read_bytes().decode()) == {"models": [table]}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    target, path = tmp_path / "shared" / "spec.toml", tmp_path / "cluster.toml"
    target.write_text(SPEC)
    path.symlink_to(target)
    append(path, BLOCK, accept)
    assert path.is_symlink()
    assert target.read_text() == f"{SPEC}\n{BLOCK}"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (b'models = [{ name = "a" }]\n', "[[models]] tables first"),
        (b"models = []\n", "[[models]] tables first"),
        (b'[models]\nname = "a"\n', "nothing was added"),
        (b"[cluster\n", "nothing was added"),
        (b'name = "\xff"\n', "nothing was added"),
    ],
)
def test_what_cannot_be_added_to_is_left_alone(tmp_path: Path, before: bytes, said: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(before)
    with pytest.raises(UsageError) as caught:
        append(path, BLOCK, accept)
    assert said in str(caught.value)
    assert path.read_bytes() == before
    assert left(tmp_path) == ["cluster.toml"]


def test_what_the_check_refuses_is_not_written(tmp_path: Path) -> None:
    def refuse(_: str) -> NoReturn:
        raise UsageError("no")

    path = tmp_path / "cluster.toml"
    path.write_text(SPEC)
    with pytest.raises(UsageError, match="no"):
        append(path, BLOCK, refuse)
    assert path.read_text() == SPEC


def test_a_file_that_is_read_only_or_away_or_a_folder_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    with pytest.raises(UsageError, match="no such file"):
        append(path, BLOCK, accept)
    path.write_text(SPEC)
    path.chmod(0o444)
    with pytest.raises(UsageError, match="is read-only"):
        append(path, BLOCK, accept)
    with pytest.raises(UsageError, match="cannot be read"):
        append(tmp_path, BLOCK, accept)
    assert path.read_text() == SPEC
    assert left(tmp_path) == ["cluster.toml"]


def test_what_another_wrote_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(SPEC)
    with pytest.raises(RayclusterError, match="changed meanwhile"):
        append(path, BLOCK, lambda _: path.write_text("# theirs\n"))
    assert path.read_text() == "# theirs\n"
    assert left(tmp_path) == ["cluster.toml"]


def test_a_full_disk_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(SPEC)

    def full(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RayclusterError, match="No space left on device; it is as it was"):
        append(path, BLOCK, accept)
    assert path.read_text() == SPEC
    assert left(tmp_path) == ["cluster.toml"]


def test_a_new_file_is_made_where_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    append(path, BLOCK, accept, new=True)
    assert path.read_text() == BLOCK
