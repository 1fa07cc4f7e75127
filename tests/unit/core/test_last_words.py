"""Which line of a log is told as the cause: never one that merely informs, never an escape."""

from __future__ import annotations

import pytest

from raycluster.core.last_words import last_words
from raycluster.serve.rootcause import root_cause

RAY = "\x1b[36m2026-11-02 12:00:00,123\x1b[39m \x1b[32mINFO scripts.py:914 -- Ray started.\x1b[39m"
NONE = "its log contains no error; the last lines: "


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", ""),
        ("\n \n", ""),
        (RAY, NONE + "2026-11-02 12:00:00,123 INFO scripts.py:914 -- Ray started."),
        (f"OSError: [Errno 98] Address already in use\n{RAY}\n",
         "OSError: [Errno 98] Address already in use"),
        ("nginx: [emerg] bind() to 0.0.0.0:443 failed\nnginx: [notice] exit\n",
         "nginx: [emerg] bind() to 0.0.0.0:443 failed"),
        ("ts=1 level=ERROR msg=\"opening storage\"\nts=2 level=info msg=\"See you next time!\"",
         'ts=1 level=ERROR msg="opening storage"'),
        ("[2026-11-02 12:00:00,1 E 7 7] (raylet) node died\n[2026-11-02 12:00:01,1 I 7 7] Shut",
         "[2026-11-02 12:00:00,1 E 7 7] (raylet) node died"),
        ("sh: 1: exec: ray: Exec format error", "sh: 1: exec: ray: Exec format error"),
        ("Das Programm wurde beendet", "Das Programm wurde beendet"),
        ("\x1b[31mno GPU\x1b[0m\n\n", "no GPU"),
        ("\x1b]0;title\x07INFO a\nINFO b\nDEBUG c", NONE + "INFO b / DEBUG c"),
        ("Traceback (most recent call last):\n  File \"error.py\", line 1\nKeyError: 'x'\nINFO bye",
         "KeyError: 'x'"),
        (f"{'x' * 500} failed", "x" * 300),
    ],
)  # fmt: skip
def test_the_line_that_tells_the_cause(log: str, told: str) -> None:
    assert last_words(log) == told


def test_a_status_message_of_information_alone_is_no_cause() -> None:
    assert root_cause(RAY) == ""
    assert root_cause(f"\x1b[31mthe engine is gone\x1b[0m\n{RAY}\n") == "the engine is gone"
