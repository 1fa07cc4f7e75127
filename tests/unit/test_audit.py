"""What is made of pip-audit's word."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.audited import SILENT, verdict

UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}
GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {
    "name": "bad",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}, {"id": "PYSEC-2", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "code", "lines"),
    [
        ([GOOD], 0, ["no known vulnerability"]),
        ([UNKNOWN], SILENT, ["left out: the package index tells no vulnerabilities"]),
        ([GOOD, UNKNOWN], 0, ["left out, for the index does not know them: own"]),
        (
            [GOOD, BAD],
            1,
            ["bad 2: PYSEC-1, mended in 3", "bad 2: PYSEC-2, mended in no release"],
        ),
    ],
)
def test_a_known_vulnerability_fails_and_silence_is_told(
    packages: list[dict[str, Any]], code: int, lines: list[str]
) -> None:
    assert verdict({"dependencies": packages}) == (lines, code)
