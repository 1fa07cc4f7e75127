"""What each panel of Grafana's dashboards says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from dashboards.panels import queries
from docs.generate.text import cell, table

FOLDER = Path(__file__).parents[2] / "templates" / "grafana" / "dashboards"
ORDER = ("overview", "serving", "gpus", "gateway")


def dashboards_reference() -> str:
    """Return a section for each dashboard, with a table for each of its rows."""
    pages = [json.loads((FOLDER / f"{name}.json").read_text()) for name in ORDER]
    return "\n\n".join(part for page in pages for part in _page(page))


def _page(dashboard: Mapping[str, Any]) -> Iterator[str]:
    lacks = {query.panel: query.lacks for query in queries(dashboard)}
    yield f"## {dashboard['title']}\n\n{dashboard['description']}"
    for is_row, panels in groupby(dashboard["panels"], lambda panel: panel["type"] == "row"):
        if is_row:
            yield from (f"### {row['title']}" for row in panels)
        else:
            rows = [(cell(p["title"]), _says(p, lacks[p["title"]])) for p in panels]
            yield table(("panel", "says"), rows)


def _says(panel: Mapping[str, Any], lacks: str) -> str:
    return cell(panel["description"] + (f" There only when {lacks}." if lacks else ""))
