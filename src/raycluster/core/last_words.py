"""The line of a log that tells why a program ended, or else how its log ends, said as that; pure.

Travels to hosts with the supervisor: standard library alone, Python 3.8.
"""

from __future__ import annotations

import re

MOST = 20  # lines from the end in which an error is looked for
LONGEST = 300  # characters of a line

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)|[\x00-\x08]"
)
# Ray's own programs write one letter, after the time and before the process: [.. 12:00:00,1 E 7 7]
_LEVEL = re.compile(
    r"(?:\b(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|PANIC)\b"
    r"|[\[(](trace|debug|info|notice|warn|warning|error|crit|alert|emerg|fatal)[\])]"
    r"|\b(?:level|lvl|severity)\"?[=:] ?\"?([A-Za-z]+)"
    r"|[0-9] ([IWECF]) [0-9])"
)
_GRAVE = frozenset(("error", "critical", "fatal", "panic", "crit", "alert", "emerg", "e", "c", "f"))
_TELLS = re.compile(
    r"error|exception|fatal|fail|cannot|can't|could not|unable|denied|not found|no such|refused"
    r"|not permitted|invalid|killed|exceeded|no space|out of memory|in use|unknown|missing",
    re.IGNORECASE,
)
_FRAME = re.compile(r"\s+\S|Traceback \(|During handling of|The above exception")


def last_words(log: str) -> str:
    """Return why a program ended as its log tells, or the quoted end of the log, or ""."""
    lines = [line.rstrip() for line in _ESCAPES.sub("", log.replace("\r", "\n")).split("\n")]
    lines = [line for line in lines if line.strip()][-MOST:]
    if not lines:
        return ""
    for line in reversed(lines):
        level = _level(line)
        if level in _GRAVE or (level is None and not _FRAME.match(line) and _TELLS.search(line)):
            return line.strip()[:LONGEST]
    if _level(lines[-1]) is None:
        return lines[-1].strip()[:LONGEST]
    ending = " / ".join(line.strip()[:LONGEST] for line in lines[-2:])
    return f"its log contains no error; the last lines: {ending}"


def _level(line: str) -> str | None:
    """Return the level at the beginning of a line, None where it has none."""
    found = _LEVEL.search(line[:120])
    return next(group for group in found.groups() if group).lower() if found else None
