"""The raw results of the benchmarks: each file with its date and the limits that it was held to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generate.text import cell, code, table

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
_NAME = re.compile(r"([a-z_]+)-(\d{4})(\d\d)(\d\d)T\d{6}\.json")


def results_reference() -> str:
    """Return a section for each benchmark, its runs in the order of time."""
    programs: dict[str, list[Path]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        programs.setdefault(_parts(path)[0], []).append(path)
    return "\n\n".join(_program(name, paths) for name, paths in programs.items())


def _parts(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not named PROGRAM-DATETIME.json")
    return match[1], "-".join(match.groups()[1:])


def _program(name: str, paths: list[Path]) -> str:
    runs = "\n\n".join(_run(path) for path in paths)
    return f"## {name}\n\n`python -m benchmarks.{name}`\n\n{runs}"


def _run(path: Path) -> str:
    run: Mapping[str, Any] = json.loads(path.read_text())
    rows = [
        (
            cell(limit["what"]),
            code(f"{limit['figure']:.4g}"),
            code(f"{limit['at_most']:g}"),
            "yes" if limit["kept"] else "**no**",
        )
        for limit in run.get("limits") or ()
    ]
    title = f"[{_parts(path)[1]}](results/{path.name})"
    if options := " ".join(run.get("options") or ()):
        title += f", {code(options)}"
    told = table(("figure", "value", "at most", "kept"), rows)
    return f"{title}\n\n{told}" if told else f"{title}: no limits; the figures are in the file."
