"""The dashboards as files: what is committed is what Python makes, and it is whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.__main__ import FOLDER, PAGES, written
from dashboards.panels import Query, evaluable, queries
from dashboards.parts import COLUMNS, Line, figure, page
from dashboards.series import EVERYWHERE, GPU_ONLY, SOMETIMES, named
from docs.generate.panels import dashboards_reference
from raycluster.core import templates
from raycluster.services.grafana import SOURCE_UID

UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and name[0] != "_"}
FILES = {name: json.loads((FOLDER / name).read_text()) for name in PAGES}
QUERIES = [query for text in FILES.values() for query in queries(text)]


def panels(name: str) -> list[dict[str, Any]]:
    return [p for p in FILES[name]["panels"] if p["type"] != "row"]


@pytest.mark.parametrize("name", PAGES)
def test_what_is_committed_is_what_is_made(name: str) -> None:
    assert (FOLDER / name).read_text() == written(PAGES[name]), "run scripts/dashboards"


def test_the_reference_tells_of_all_panels() -> None:
    text = dashboards_reference()
    for name in PAGES:
        assert f"## {FILES[name]['title']}\n" in text
        assert all(f"| {panel['title']} | " in text for panel in panels(name))


def test_no_other_files_are_committed() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_grafana_s_own_types_read_it_whole(name: str) -> None:
    read = Dashboard.from_json(FILES[name])
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == FILES[name]


def test_pages_are_told_apart() -> None:
    for key in ("uid", "title"):
        assert len({text[key] for text in FILES.values()}) == len(PAGES)
    assert all(8 <= len(text["uid"]) <= 40 for text in FILES.values())


@pytest.mark.parametrize("name", PAGES)
def test_panels_lie_on_the_grid_beside_each_other(name: str) -> None:
    places = [panel["gridPos"] for panel in FILES[name]["panels"]]
    assert len({(p["x"], p["y"]) for p in places}) == len(places)
    for place in places:
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= COLUMNS - place["w"]
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    area = sum(p["w"] * p["h"] for p in places)
    assert area == COLUMNS * max(p["y"] + p["h"] for p in places), "there is a gap"


@pytest.mark.parametrize("name", PAGES)
def test_panels_are_told_apart_and_say_what_they_show(name: str) -> None:
    shown = panels(name)
    assert len({p["id"] for p in FILES[name]["panels"]}) == len(FILES[name]["panels"])
    assert len({p["title"] for p in shown}) == len(shown)
    for panel in shown:
        assert panel["title"][0].isupper()
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS or defaults["unit"].startswith("suffix:"), panel["title"]
        steps = defaults["thresholds"]["steps"]
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:])


@pytest.mark.parametrize("name", PAGES)
def test_queries_go_to_the_cluster_s_prometheus_and_are_named(name: str) -> None:
    source = {"type": "prometheus", "uid": SOURCE_UID}
    for panel in panels(name):
        assert panel["datasource"] == source
        assert panel["targets"]
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["legendFormat"]
    for variable in FILES[name].get("templating", {}).get("list", ()):
        assert variable["datasource"] == source


@pytest.mark.parametrize("name", PAGES)
def test_variables_are_defined_and_used(name: str) -> None:
    used = {
        word
        for query in queries(FILES[name])
        for word in re.findall(r"\$(\w+)", query.expr)
        if not word.startswith("__")
    }
    defined = {v["name"] for v in FILES[name].get("templating", {}).get("list", ())}
    assert used == defined


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_queries_name_known_series_alone(query: Query) -> None:
    assert named(query.expr), query.expr
    assert named(query.expr) <= EVERYWHERE | SOMETIMES.keys() | GPU_ONLY.keys()


def test_the_list_holds_no_series_that_nobody_shows() -> None:
    shown = {name for query in QUERIES for name in named(query.expr)}
    assert EVERYWHERE | SOMETIMES.keys() | GPU_ONLY.keys() == shown


def test_recorded_series_are_among_prometheus_s_rules() -> None:
    rules = yaml.safe_load((templates.folder() / "prometheus" / "recording.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    assert {name for name in EVERYWHERE if ":" in name} <= recorded


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_legends_name_labels_that_the_query_keeps(query: Query) -> None:
    kept = re.search(r"\bby \(([^)]*)\)", query.expr)
    labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    if kept:
        assert labels == set(kept[1].split(", ")) - {"le", ""}
    elif "sum(" in query.expr or "min(" in query.expr:
        assert labels == set()


def _rules() -> Iterator[str]:
    for number, query in enumerate(QUERIES):
        yield f"      - record: panel:{number}\n        expr: {json.dumps(evaluable(query.expr))}\n"


def test_promtool_can_read_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool")
    rules = tmp_path / "rules.yml"
    rules.write_text("groups:\n  - name: panels\n    rules:\n" + "".join(_rules()))
    done = subprocess.run(
        [promtool, "check", "rules", rules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(QUERIES)} rules found" in done.stdout


@pytest.mark.parametrize(
    ("expression", "series"),
    [
        ('sum by (le, model) (rate(a_bucket{model=~"x|y"}[5m])) or 0 * b:c', {"a_bucket", "b:c"}),
        ("clamp_min(sum(rate(a[$__rate_interval])), 1e-9)", {"a"}),
        ('a{b="}"} / on (node) group_left c', {"a", "c"}),
        ("min(a) - time()", {"a"}),
        ("group by (b) (last_over_time(a[10m]) unless a offset 10m)", {"a"}),
        ("a * on (x) group_left (y) group by (x, y) (c)", {"a", "c"}),
    ],
)
def test_series_are_found_in_expressions(expression: str, series: set[str]) -> None:
    assert named(expression) == series


@pytest.mark.parametrize(("widths", "said"), [([12, 8], "column 20"), ([16, 12], "no room")])
def test_a_gap_on_the_grid_is_refused(widths: list[int], said: str) -> None:
    shown = [figure(f"{w}", "It is.", "none", Line("up", "up"), width=w) for w in widths]
    with pytest.raises(ValueError, match=said):
        page("page", "Page", "It is.", [("Row", shown)])
