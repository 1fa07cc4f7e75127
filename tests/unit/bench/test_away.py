"""What of this package travels to where a load is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raycluster.bench.away import Job, Listener, code
from raycluster.bench.load import Conditions
from raycluster.bench.record import Record
from raycluster.bench.schedule import Closed, Load
from raycluster.errors import RayclusterError
from raycluster.openai_wire.target import Target
from tests.unit.bench.level import requests

PROGRAM = "import raycluster.bench.away as away; print(away.__file__)"


def test_the_code_that_travels_needs_nothing_of_what_stays(tmp_path: Path) -> None:
    packed = tmp_path / "code.zip"
    packed.write_bytes(code())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(packed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(packed))


@dataclass
class Heard:
    """What a listener told."""

    notes: list[str] = field(default_factory=list)
    kept: list[Record] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)

    def listener(self) -> Listener:
        job = Job((), Target("http://x", "m"), Load((Closed(4),)), Conditions())
        return Listener(
            job, self.notes.append, lambda _, record: self.kept.append(record), self.looked.append
        )


END = {
    "load": {"kind": "closed", "concurrency": 4},
    "client": {"loop_lag_ms": None, "cpu_share": 0.5, "processes": 1, "capacity": None},
    "repeated": 0,
    "salted": False,
}


def test_what_the_program_says_makes_a_summary() -> None:
    heard = Heard()
    listener = heard.listener()
    records = [json.loads(json.dumps(record.to_json())) for record in requests(8)]
    lines: list[dict[str, object]] = [{"note": "begins"}, {"look": 1, "ago": None}]
    lines += [{"level": 0, "record": record} for record in records]
    found = {"limits": ["ttft<1s"], "kept": 2, "missed": None}
    for line in (*lines, {"levels": [END], "found": found}):
        listener.take(json.dumps(line).encode())
    summary = listener.summary(0.0, interrupted=False)
    assert (heard.notes, heard.looked, len(heard.kept)) == (["begins"], [1], 8)
    assert [record.to_json() for record in heard.kept] == records
    assert [level.shape for level in summary.levels] == [Closed(4)]
    assert summary.found
    assert summary.found.kept == 2


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"note": 5}', b'{"look": "x"}'),
        *(b'{"record": {}}', b'{"record": {"id": 1}}', b'{"error": ["x"]}', b'{"look": 1e999}'),
        json.dumps({"record": {**requests(1)[0].to_json(), "intended": "soon"}}).encode(),
        json.dumps({"record": {**requests(1)[0].to_json(), "gaps": [{}]}}).encode(),
        json.dumps({"levels": [{**END, "client": {}}]}).encode(),
        json.dumps({"levels": [{**END, "load": {"kind": "open", "rate": "fast"}}]}).encode(),
        json.dumps({"levels": [{**END, "load": {"kind": "none"}}]}).encode(),
        json.dumps({"levels": [END], "found": {"limits": 5, "kept": [], "missed": {}}}).encode(),
    ],
    ids=lambda line: repr(line[:30]),
)
def test_what_cannot_be_understood_is_one_error(line: bytes) -> None:
    listener = Heard().listener()
    with pytest.raises(RayclusterError) as caught:
        listener.take(line)
    assert str(caught.value)
