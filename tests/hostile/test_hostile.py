"""Hostile hosts: whatever they say, a command ends by itself, in a way that was designed.

Every run has hosts that answer as real ones did (`record.py`), but for some answers, which are
spoiled: bytes and values of every kind, cut, silent, much too long, archives that lead elsewhere or
grow. By hand, with more: RAYCLUSTER_HOSTILE_RUNS=200000 pytest tests/hostile
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

from tests.hostile.attempt import Stage, attempt, staged
from tests.hostile.spoil import Spoiler

RUNS = int(os.environ.get("RAYCLUSTER_HOSTILE_RUNS", "5000"))
SHARES: Mapping[str, float] = {
    **{"check": 0.26, "first-plan": 0.25, "status": 0.14, "plan": 0.12, "down": 0.1},
    **{
        "deploy": 0.05,
        "logs": 0.04,
        "tunnel": 0.04,
        "up": 0.016,
        "bench": 0.016,
        "support-bundle": 0.008,
    },
}
"""Which part of the runs each command has: those that take long are fewer."""
WELL: Mapping[str, int] = {"check": 3}
"""How a command ends on the hosts that were recorded, where that is not with 0."""


ANEW = "where commands ask otherwise than before: python -m tests.hostile.record, as root"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A place for all runs."""
    with staged(tmp_path_factory.mktemp("hostile") / "stage") as made:
        yield made


@pytest.mark.parametrize("command", SHARES)
def test_hosts_that_say_what_real_ones_said(stage: Stage, command: str) -> None:
    """Else the runs below would look at next to nothing."""
    outcome = attempt(stage, command, lambda said: said, patience=30.0)
    assert outcome.code == WELL.get(command, 0), f"{outcome.err}\n{ANEW}"
    assert len(outcome.unknown) <= 5, (ANEW, outcome.unknown)
    assert (b'"object":"list"' in outcome.heard) == (command == "tunnel"), outcome.heard[:500]


@pytest.mark.parametrize("command", SHARES)
def test_whatever_a_host_says_a_command_ends_as_it_was_designed_to(
    stage: Stage, command: str
) -> None:
    for seed in range(round(RUNS * SHARES[command])):
        try:
            attempt(stage, command, Spoiler(seed))
        except BaseException as error:
            error.add_note(f"{command}, seed {seed}")
            raise
