"""Say what pip-audit found of one lock.

Exits with 1 where that is a known vulnerability, and with 3 where the index tells of none at all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SILENT = 3


def verdict(found: dict[str, Any]) -> tuple[list[str], int]:
    """Return lines for a person, and the exit code."""
    packages = found["dependencies"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if len(unknown) == len(packages):
        return ["left out: the package index tells no vulnerabilities"], SILENT
    lines = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, mended in "
        + (", ".join(vulnerability["fix_versions"]) or "no release")
        for each in packages
        for vulnerability in each.get("vulns", ())
    ]
    bad = bool(lines)
    if unknown:
        lines.append(f"left out, for the index does not know them: {', '.join(unknown)}")
    return lines or ["no known vulnerability"], int(bad)


def main() -> int:
    """Print the verdict on the lock that the first argument names."""
    lock, told = sys.argv[1:]
    lines, code = verdict(json.loads(Path(told).read_text()))
    for line in lines:
        print(f"audit: {lock}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
