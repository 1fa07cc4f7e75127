"""What `--since` may say: a duration such as `10m`, or a moment such as `2026-11-26T10:00:00Z`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from raycluster.core.errors import UsageError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(d|h|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(d|h|m|s)")


def seconds_ago(text: str, now: float) -> float:
    """Return how many seconds before `now`, in seconds since 1970, a text means.

    A number alone is in seconds; a moment without a zone is one of this machine's zone. Raises
    UsageError.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a valid time",
            where="--since",
            hint="use a duration such as 10m or 1h30m, or a time such as 2026-11-26T10:00:00Z",
        ) from None
    if moment > now:
        raise UsageError(f"{text} is in the future", where="--since")
    return now - moment
