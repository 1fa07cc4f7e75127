"""Reads the queries out of a dashboard's file, as something other than Grafana can ask them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dashboards.series import GPU_ONLY, named


@dataclass(frozen=True)
class Query:
    """What a panel asks, or with an empty legend what the choices of a variable come from."""

    page: str
    panel: str
    expr: str
    legend: str

    def __str__(self) -> str:
        return f"{self.page}: {self.panel}: {self.legend}"

    @property
    def lacks(self) -> str:
        """What has to be so before the query has a series; empty on every cluster."""
        return " and ".join(sorted({GPU_ONLY[n] for n in named(self.expr) & GPU_ONLY.keys()}))


def queries(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield the queries of all panels of a dashboard."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Query(dashboard["title"], panel["title"], target["expr"], target["legendFormat"])


def choices(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield what has the values of each variable of a dashboard, as its label."""
    for variable in dashboard.get("templating", {}).get("list", ()):
        made = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        if made is None:
            raise ValueError(f"{variable['name']}: {variable['query']} is not understood")
        yield Query(dashboard["title"], variable["name"], f"group by ({made[2]}) ({made[1]})", "")


def evaluable(expression: str, window: str = "2m") -> str:
    """Return an expression as Grafana sends it: `window` for its interval, all of each variable."""
    filled = expression.replace("$__rate_interval", window)
    return re.sub(r"\$\w+", ".*", filled)
