"""What `--since` takes."""

from __future__ import annotations

import pytest

from raycluster.core.errors import UsageError
from raycluster.logs.when import seconds_ago

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
        ("2025-12-31T23:59:00Z", 60),
        ("2026-01-01T00:59:30+01:00", 30),
        (" 10s ", 10),
    ],
)
def test_durations_and_moments(text: str, seconds: float) -> None:
    assert seconds_ago(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "ten", "10x", "-5", "m", "2026-13-01T00:00:00Z", "1h 30m"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid time"):
        seconds_ago(text, NOW)


def test_what_is_still_to_come_is_refused() -> None:
    with pytest.raises(UsageError, match="is in the future"):
        seconds_ago("2027-01-01T00:00:00Z", NOW)
