"""Writes all dashboards as JSON, as Grafana reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.gateway import gateway
from dashboards.gpus import gpus
from dashboards.overview import overview
from dashboards.serving import serving

FOLDER = Path(__file__).parents[1] / "templates" / "grafana" / "dashboards"
PAGES: Mapping[str, Callable[[], Dashboard]] = {
    "overview.json": overview,
    "serving.json": serving,
    "gpus.json": gpus,
    "gateway.json": gateway,
}


def written(page: Callable[[], Dashboard]) -> str:
    """Return a page as the text of its file."""
    return json.dumps(page().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write all files, and take away those of pages that are no more."""
    for former in FOLDER.glob("*.json"):
        former.unlink()
    for name, page in PAGES.items():
        (FOLDER / name).write_text(written(page))


if __name__ == "__main__":
    main()
