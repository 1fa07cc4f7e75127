"""Every panel of Grafana's dashboards, asked of a real Prometheus after a real load.

Grafana itself is not there: what it would ask is taken from the files that it would read.
"""

from __future__ import annotations

import json
import math

import pytest

from dashboards.__main__ import FOLDER, PAGES
from dashboards.panels import Query, choices, evaluable, queries
from tests.lab.host import wait_for
from tests.lab.services.cluster import Watched
from tests.lab.specs import MODEL

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

WINDOW = "15m"  # all of the load, however long ago it was
FILES = [json.loads((FOLDER / name).read_text()) for name in PAGES]
PANELS = [query for text in FILES for query in queries(text)]


@pytest.mark.parametrize("query", [q for q in PANELS if not q.lacks], ids=str)
def test_the_panel_has_something_to_show(watched: Watched, query: Query) -> None:
    def shown() -> bool:
        series = watched.query(evaluable(query.expr, WINDOW))
        return any(math.isfinite(float(s["value"][1])) for s in series)

    wait_for(shown, f"{query}: {query.expr}", 30)


@pytest.mark.parametrize("query", [q for q in PANELS if q.lacks], ids=lambda q: f"{q}, {q.lacks}")
def test_what_is_listed_as_gpu_only_has_nothing_on_hosts_without(
    watched: Watched, query: Query
) -> None:
    assert watched.query(evaluable(query.expr, WINDOW)) == []


@pytest.mark.parametrize("query", [c for text in FILES for c in choices(text)], ids=str)
def test_choices_have_values(watched: Watched, query: Query) -> None:
    wanted = {"model": {MODEL}, "node": {"head", "docker-2"}}[query.panel]

    def found() -> set[str]:
        return {s["metric"][query.panel] for s in watched.query(query.expr)}

    wait_for(lambda: found() == wanted, f"{wanted} and nothing else", 60)
