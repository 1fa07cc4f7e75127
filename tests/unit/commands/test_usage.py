"""What `usage` prints, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from raycluster.cli import app
from raycluster.commands.usage import _json, _show, _write_csv
from raycluster.core.errors import UsageError
from raycluster.status.usage import NO_KEY, Row, UsageReport

ROWS = (Row(NO_KEY, "b", 1, 20, 0, 5, 0.5), Row("alice", "org/a", 1200, 10**7, 10**6, 9, 12.0))
FOUND = UsageReport(ROWS, 3600, "EUR", 12.5)


def spec(folder: Path, more: str = "") -> str:
    path = folder / "cluster.toml"
    path.write_text(f'cluster.name = "q"\n[head]\ntransport = "local"\n{more}')
    return str(path)


@pytest.mark.parametrize(
    ("more", "options", "what"),
    [
        ("", (), "no Prometheus"),
        ("[monitoring]\nprometheus = false\n", (), "no Prometheus"),
        ("[monitoring]\n", ("--json", "--csv"), "choose one"),
        ("[monitoring]\n", ("--since", "soon"), "is not a valid time"),
        ("[monitoring]\n", ("--since", "2999-01-01"), "is in the future"),
    ],
)
def test_what_it_cannot_tell_is_an_error(
    tmp_path: Path, more: str, options: tuple[str, ...], what: str
) -> None:
    done = CliRunner().invoke(app, ["usage", spec(tmp_path, more), *options])
    assert isinstance(done.exception, UsageError)
    assert what in str(done.exception)


def test_a_person_sees_names_numbers_and_money(capsys: pytest.CaptureFixture[str]) -> None:
    _show(FOUND, None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["KEY", "MODEL", "REQUESTS", "PROMPT", "CACHED", "GENERATED", "EUR"]
    assert lines[1] == ["(no", "key)", "b", "1", "20", "0", "5", "0.50"]
    assert lines[2] == ["alice", "org/a", "1,200", "10,000,000", "1,000,000", "9", "12.00"]
    assert lines[3] == ["total", "1,201", "10,000,020", "1,000,000", "14", "12.50"]
    assert lines[4][:2] == ["1.39", "EUR"]


@pytest.mark.parametrize(("by", "title"), [("key", "KEY"), ("model", "MODEL")])
def test_one_of_both_has_a_column(
    capsys: pytest.CaptureFixture[str], by: Literal["key", "model"], title: str
) -> None:
    _show(UsageReport((Row("x" if by == "key" else "", "x", 1),), 60), by)
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == [title, "REQUESTS", "PROMPT", "CACHED", "GENERATED"]
    assert out[1].split() == ["x", "1", "0", "0", "0"]


def test_nothing_has_a_total_too(capsys: pytest.CaptureFixture[str]) -> None:
    _show(UsageReport((), 60), None)
    assert capsys.readouterr().out.splitlines()[1].split() == ["total", "0", "0", "0", "0"]


def test_a_program_reads_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    told = _json(FOUND)
    assert json.loads(json.dumps(told)) == told
    assert [row["key"] for row in told["rows"]] == [None, "alice"]
    assert told["total"]["prompt_tokens"] == 10_000_020
    assert told["cost_per_million_tokens"] == pytest.approx(12.5 / 9_000_034 * 1e6)
    _write_csv(FOUND)
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["key"], first["currency"]) == ("", "EUR")
    assert (second["key"], second["model"], second["cost"]) == ("alice", "org/a", "12.0")
