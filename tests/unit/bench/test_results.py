from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.bench.page import page
from raycluster.bench.record import RequestRecord
from raycluster.bench.results import ResultsFolder, read_levels
from raycluster.core.errors import UsageError
from tests.unit.bench.level import requests, summary


def rounded(records: list[RequestRecord]) -> list[RequestRecord]:
    """Return records as they are after writing and reading."""
    return [RequestRecord.from_json(json.loads(json.dumps(record.to_json()))) for record in records]


def kept(folder: Path, *levels: list[RequestRecord]) -> Path:
    """Write records as a run does that is killed before its end."""
    with ResultsFolder(folder) as results:
        for number, records in enumerate(levels):
            for record in records:
                results.keep(number, record)
    return folder


def test_a_run_leaves_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    levels = [requests(30, failed=0.2), requests(20)]
    run = summary(*levels)
    with ResultsFolder(folder) as results:
        for number, records in enumerate(levels):
            for record in records:
                results.keep(number, record)
        results.finish(run)
    names = {path.name for path in folder.iterdir()}
    assert names == {"requests.jsonl", "summary.json", "requests.csv", "report.html"}
    written = json.loads((folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(run.to_json()))
    with (folder / "requests.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [r.id for lv in levels for r in lv]
    assert list(read_levels(folder)) == [rounded(records) for records in levels]
    assert (folder / "report.html").read_bytes() == page(run.to_json(), list(read_levels(folder)))


def test_without_a_folder_nothing_is_written() -> None:
    records = requests(3)
    with ResultsFolder(None) as results:
        results.keep(0, records[0])
        results.finish(summary(records))


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    kept(tmp_path, requests(3))
    before = (tmp_path / "requests.jsonl").read_bytes()
    with pytest.raises(UsageError, match="results already exist there"), ResultsFolder(tmp_path):
        pass
    assert (tmp_path / "requests.jsonl").read_bytes() == before


def test_a_run_without_a_request_leaves_the_folder_free(tmp_path: Path) -> None:
    kept(tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept(tmp_path, requests(1))


def test_a_page_that_cannot_be_made_costs_nothing_else(tmp_path: Path) -> None:
    records = [replace(record, first_event=float("nan")) for record in requests(5)]
    run = summary(records)
    told: list[str] = []
    with ResultsFolder(tmp_path) as results:
        for record in records:
            results.keep(0, record)
        results.finish(run, told.append)
        with pytest.raises(ValueError, match="not JSON compliant"):
            results.finish(run)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("requests.jsonl", "summary.json", "requests.csv"),
    }
    assert len(told) == 1
    assert told[0].startswith("report.html was not written: ValueError: ")


def test_half_characters_of_a_server_stop_nothing(tmp_path: Path) -> None:
    records = [replace(r, failure="protocol", detail="\ud83d, half") for r in requests(2)]
    with ResultsFolder(tmp_path) as results:
        for record in records:
            results.keep(0, record)
        results.finish(summary(records))
    assert "?, half" in (tmp_path / "report.html").read_text()
    assert "?, half" in (tmp_path / "requests.csv").read_text()


def test_a_last_line_cut_anywhere_is_left_out(tmp_path: Path) -> None:
    levels = [requests(2), [replace(requests(1)[0], detail="é€", failure="timeout")]]
    whole = (kept(tmp_path, *levels) / "requests.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) + 1):
        (tmp_path / "requests.jsonl").write_bytes(whole[:cut])
        wanted = [rounded(records) for records in levels]
        assert list(read_levels(tmp_path)) == (wanted if cut >= len(whole) - 1 else wanted[:1])
    (tmp_path / "requests.jsonl").write_bytes(whole[:last] + bytes(100))
    assert list(read_levels(tmp_path)) == [rounded(levels[0])]


@pytest.mark.parametrize("line", ["{}", "[]", "3", "\0", '{"level": 0}', '{"level": "x"}'])
def test_a_damaged_line_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    path = kept(tmp_path, requests(3)) / "requests.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(UsageError, match="not a record") as raised:
        list(read_levels(tmp_path))
    assert raised.value.where == f"{path}, line 2"


def test_a_level_may_have_no_record(tmp_path: Path) -> None:
    first, last = requests(2), requests(1, seed=1)
    levels = list(read_levels(kept(tmp_path, first, [], last)))
    assert levels == [rounded(first), [], rounded(last)]


def test_a_level_does_not_come_back(tmp_path: Path) -> None:
    path = kept(tmp_path, requests(2), requests(1)) / "requests.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(UsageError, match="a finished level"):
        list(read_levels(tmp_path))


def test_one_level_is_read_at_a_time(tmp_path: Path) -> None:
    path = kept(tmp_path, requests(2), requests(3)) / "requests.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "?\n", lines[4]]))
    levels = read_levels(tmp_path)
    assert len(next(levels)) == 2
    with pytest.raises(UsageError, match="not a record"):
        next(levels)


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        list(read_levels(tmp_path))
