from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.bench.load import Conditions
from raycluster.bench.record import RequestRecord
from raycluster.bench.results import read_levels
from raycluster.bench.resume import ENDS, RUN, LevelEnd, begin, restore
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.verdict import Client
from raycluster.core.errors import UsageError
from tests.unit.bench.level import requests
from tests.unit.bench.test_server import FIRST, grown, level, seen

LOAD = Load((Closed(4),))


def end() -> LevelEnd:
    server = seen(*level(a=[FIRST, grown(20, running=2.0), grown(300)], b=[None, FIRST, None]))
    return LevelEnd(Closed(4).to_json(), (3, 9), Client(None, 0.5), 0, False, 3000, server)


def test_a_level_that_is_over_keeps_what_the_servers_did() -> None:
    before = end()
    line = json.dumps(before.to_json()).encode()
    assert LevelEnd.from_json(line).to_json() == json.loads(line)
    records: list[RequestRecord] = requests(6)
    again = LevelEnd.from_json(line).level(records, LOAD, Conditions())
    assert again.seen.server
    assert before.server
    assert again.seen.server.replicas == before.server.replicas
    assert again.seen.server.samples[1] == before.server.samples[1]
    assert "the servers generated" not in str(again.verdict.reasons)
    others = replace(before, generated=1).level(records, LOAD, Conditions())
    assert "the servers generated" in str(others.verdict.reasons)


def test_a_level_of_an_earlier_version_has_no_figures_of_servers() -> None:
    plain = end().to_json()
    del plain["server"], plain["generated"]
    again = LevelEnd.from_json(json.dumps(plain).encode())
    assert (again.server, again.generated) == (None, None)


@pytest.mark.parametrize(
    "line", [b"[", b"[]", b"1", b"null", b"[" * 100_000, b'{"load": 1}', b"\xff", b'{"a": 1e999}']
)
@pytest.mark.parametrize("file", [RUN, ENDS, "requests.jsonl"])
def test_a_damaged_folder_is_one_error(tmp_path: Path, file: str, line: bytes) -> None:
    begin(tmp_path, {"load": 1})
    good = json.dumps(end().to_json()).encode()
    (tmp_path / ENDS).write_bytes(good + b"\n" + good + b"\n")
    (tmp_path / file).write_bytes(line + b"\n" + line + b"\n")
    with pytest.raises(UsageError):
        restore(tmp_path, {"load": 1}, LOAD, Conditions())


def test_a_record_of_a_level_out_of_all_bounds_is_none(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"level": 1000000000000}\n' * 2)
    with pytest.raises(UsageError, match="line 1"):
        list(read_levels(tmp_path))
