"""Hostile endpoints: whatever a server behind `--url` says, `bench` and `batch` end by themselves.

By hand, with more: RAYCLUSTER_HOSTILE_RUNS=50000 pytest tests/hostile
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.attempt import OF_ENDPOINTS, Stage, attempt_at, staged
from tests.hostile.endpoint import Endpoint, hostile, well
from tests.hostile.test_hostile import RUNS

SHARE = 0.03
"""Which part of the runs each command has beside those against hosts."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A place for all runs."""
    with staged(tmp_path_factory.mktemp("endpoint") / "stage") as made:
        yield made


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """A server."""
    with Endpoint(well) as made:
        yield made


@pytest.mark.parametrize("command", OF_ENDPOINTS)
def test_an_endpoint_that_says_what_a_real_one_says(
    stage: Stage, endpoint: Endpoint, command: str
) -> None:
    endpoint.answer = well
    outcome = attempt_at(stage, command, endpoint.url, seconds=30.0)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("command", OF_ENDPOINTS)
def test_whatever_an_endpoint_says_a_command_ends_as_it_was_designed_to(
    stage: Stage, endpoint: Endpoint, command: str
) -> None:
    for seed in range(round(RUNS * SHARE)):
        endpoint.answer = hostile(seed)
        try:
            attempt_at(stage, command, endpoint.url)
        except BaseException as error:
            error.add_note(f"{command}, seed {seed}")
            raise
