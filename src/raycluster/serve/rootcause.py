"""The one line that says why an engine did not start: where it is raised, and where it is read.

Pure: the laptop uses `root_cause` on the status messages that Serve's REST API returns.
"""

from __future__ import annotations

import re

from raycluster.serve.failures import ended, known

MARK = "raycluster root cause: "
LONGEST = 400

_LOG_PREFIX = re.compile(
    r"^(?:\([\w .:-]*pid=\d+[^)]*\) ?)?"  # (EngineCore pid=123)
    r"(?:(?:CRITICAL|ERROR|WARNING|INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning|Failure)(?:_\w+)?(?::\s|$)"
)
_ELSEWHERE = re.compile(
    r"\b(?:see|check) (?:the )?(?:root cause|stack trace|error|logs?)\b", re.IGNORECASE
)
_ESCAPES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
_INFORMS = re.compile(r"^.{0,60}?\b(?:INFO|DEBUG)\b|^\[[^\]]{0,40}[0-9] [ID] [0-9]")
_LOGGED = re.compile(r"^(?:\([\w .:-]*pid=\d+[^)]*\) ?)?(?:CRITICAL|ERROR|WARNING|INFO|DEBUG)\b")
ELSEWHERE = "see root cause above"
"""What our own errors end with where the cause is in what was written."""
_OF_ENGINE = ("(EngineCore", "(Worker")
_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)")
_NOISE = re.compile(r"\s*\[type=\w+, input_value=.*?\]|\s*For further information visit \S+", re.S)

_HAPROXY = "HAProxy crashed during startup: "
_ALERT = re.compile(r"\[ALERT\]\s*\(\d+\) : (.+)")
"""A line of HAProxy's; the first says what is wrong, others that it ends."""

_INVALID = re.compile(
    r"(?:\w+\.)*ValidationError: \d+ validation errors? for (\w+)\s+(?:Value error, )?"
)


def root_cause(message: str) -> str:
    """Return the root cause in a deployment's or replica's status message, as one line.

    Falls back to the last exception of a traceback, then to the last line that is not empty and
    does not merely inform.
    """
    marked = message.rfind(MARK)
    if marked >= 0:
        return message[marked + len(MARK) :].splitlines()[0].strip()
    plain = (line.strip() for line in _ESCAPES.sub("", message).splitlines())
    if _HAPROXY in message and (alert := _ALERT.search(message, message.rfind(_HAPROXY))):
        return _shorten(f"HAProxy does not start: {alert[1]}")
    lines = [line for line in plain if line and not _INFORMS.match(line)]
    return last_exception(message) or (lines[-1] if lines else "")


def one_line(error: BaseException) -> str:
    """Return `Type: message` on one line, without what pydantic adds for programmers."""
    text = " ".join(_NOISE.sub("", str(error)).split())
    name = type(error).__name__
    return _shorten(f"{name}: {text}" if text else name)


def last_exception(text: str) -> str:
    """Return the last exception line in a log that does not point elsewhere, or ""."""
    lines = _plain(text).split("\n")
    for at in range(len(lines) - 1, -1, -1):
        if _EXCEPTION.match(lines[at]) and not _ELSEWHERE.search(lines[at]):
            return _shorten(_with_continuation(lines, at))
    return ""


def explain(error: BaseException, written: str) -> str:
    """Return why an engine did not start: from its exception, or from what its processes wrote.

    An exception with a `signal` is of a process that this has ended, and one with what such a
    process has `written` knows better than who has logged the exception since.
    """
    written = getattr(error, "written", "") or written
    elsewhere = _ELSEWHERE.search(str(error))
    if killed := _KILLED.search(f"{error}\n{written}" if elsewhere else str(error)):
        return ended(int(killed[1]))
    if signal := getattr(error, "signal", 0):
        return ended(signal)
    lines = _plain(written)
    if not elsewhere:
        return _named(one_line(error), f"{type(error).__name__}: {error}", lines)
    last = last_exception(written)
    return _named(last, last, lines) or _with_last_words(one_line(error), written)


def _with_last_words(told: str, written: str) -> str:
    """Return what is told, with the last line of what was written that is no line of a log.

    A loader or Python itself ends a program with such a line, and no exception's.
    """
    plain = (line.strip() for line in reversed(written.splitlines()) if not _LOGGED.match(line))
    words = next(filter(None, plain), "")
    return _shorten(told.replace(ELSEWHERE, words)) if words else told


def _named(told: str, error: str, written: str) -> str:
    """Return what is told of an error, in words where it is a known one."""
    words = known(error, written) if told else ""
    return _shorten(" ".join(words.split())) if words else told


def _plain(log: str) -> str:
    lines = _ESCAPES.sub("", log).splitlines()
    return "\n".join(_LOG_PREFIX.sub("", line).rstrip() for line in lines)


def why_dead(error: BaseException, written: str) -> str:
    """Return why an engine that ran is dead: from its exception, or its processes' own last words.

    The log holds the requests' exceptions too; those of the engine's processes bear their names.
    """
    if not _ELSEWHERE.search(str(error)):
        return one_line(error)
    theirs = "\n".join(line for line in written.splitlines() if line.startswith(_OF_ENGINE))
    last = last_exception(theirs)
    return _named(last, last, _plain(theirs)) or "its process ended without an error (killed?)"


def _with_continuation(lines: list[str], at: int) -> str:
    """Join the indented lines that follow, in which pydantic puts the message itself."""
    parts = [lines[at]]
    for line in lines[at + 1 : at + 4]:
        if not line.startswith("  ") or line.lstrip().startswith(("File ", "For further")):
            break
        parts.append(line.strip())
    return " ".join(_NOISE.sub("", " ".join(parts)).split())


def _shorten(text: str) -> str:
    """Return as many whole sentences as fit, without pydantic's way of beginning them."""
    text = _INVALID.sub(r"\1: ", text)
    if len(text) <= LONGEST:
        return text
    end = text.rfind(". ", 0, LONGEST)
    return text[: end + 1] if end > 0 else text[: LONGEST - 1] + "…"
