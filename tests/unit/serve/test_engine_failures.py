from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from raycluster.serve.engine_failures import (
    FRESH_S,
    INCIDENT_S,
    WINDOW_S,
    EngineFailure,
    Records,
    folder,
    incidents,
    verdict,
)

NOW = 1_000_000.0


def ago(*seconds: float) -> tuple[EngineFailure, ...]:
    return tuple(EngineFailure(NOW - s, f"{s:.0f} s ago") for s in seconds)


@pytest.mark.parametrize(
    ("failures", "counted"),
    [
        ((), 0),
        (ago(5), 1),
        (ago(100, 300, 200), 3),
        (ago(WINDOW_S + 1, 300, 200), 2),
        (ago(100, 100 + INCIDENT_S / 2, 300), 2),
        (ago(100, 100 + INCIDENT_S * 2, 300), 3),
    ],
)
def test_deaths_count_when_recent_and_apart(
    failures: tuple[EngineFailure, ...], counted: int
) -> None:
    assert len(incidents(failures, NOW)) == counted
    assert bool(verdict(failures, NOW)) == (counted == 3)


def test_the_verdict_tells_the_last_cause() -> None:
    assert verdict(ago(50, 400, 200), NOW) == (
        "vLLM died 3 times within 10 minutes on this node; the last time: 50 s ago"
    )


def records(place: Path, node: str = "a" * 56) -> Records:
    found = Records(place, node)
    found.failures()
    return found


def abandoned(place: Path, node: str, age: float) -> None:
    """Leave the file of a replica whose process is gone, checked `age` seconds ago."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = place / f"alive-{node[:16]}-{ended.pid}-1"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)


def test_a_death_is_on_record_for_the_next_replica(tmp_path: Path) -> None:
    first = records(tmp_path)
    first.alive()
    assert records(tmp_path).failures() == ()
    first.died("killed")
    first.died("later, and less telling")
    first.ended()
    (failure,) = records(tmp_path, "b" * 56).failures()
    assert failure.cause == "killed"
    assert failure.at == pytest.approx(time.time(), abs=10)


def test_a_proper_end_leaves_nothing(tmp_path: Path) -> None:
    one = records(tmp_path)
    one.alive()
    one.ended()
    assert list(tmp_path.iterdir()) == []


def test_a_replica_that_vanished_while_it_served_has_died(tmp_path: Path) -> None:
    one = records(tmp_path)
    abandoned(tmp_path, "a" * 56, age=5)
    (failure,) = one.failures()
    assert failure.cause == "its process disappeared (probably out of memory)"
    assert one.failures() == (EngineFailure(failure.at, "its process disappeared"),)


@pytest.mark.parametrize(
    ("node", "age"), [("a" * 56, FRESH_S + 5), ("b" * 56, 5)], ids=["killed late", "node restarted"]
)
def test_a_replica_that_was_ended_has_not_died(tmp_path: Path, node: str, age: float) -> None:
    one = records(tmp_path)
    abandoned(tmp_path, node, age)
    assert one.failures() == ()
    assert list(tmp_path.iterdir()) == []


def test_old_deaths_are_forgotten(tmp_path: Path) -> None:
    one = records(tmp_path)
    one.died("long ago")
    (path,) = tmp_path.iterdir()
    os.utime(path, (time.time() - WINDOW_S - 1,) * 2)
    assert one.failures() == ()
    assert list(tmp_path.iterdir()) == []


def test_each_deployment_has_its_own_folder() -> None:
    told = {"name": "m", "engine_args": {"a": 1}}
    assert folder("/r", told) == folder("/r", dict(reversed(told.items())))
    assert folder("/r", told) != folder("/r", {**told, "engine_args": {"a": 2}})
    assert folder("/r", told).is_relative_to("/r/run")
