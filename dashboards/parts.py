"""What every dashboard is made of, on top of Grafana's own builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    FieldColorModeId,
    GridPos,
    Panel,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from raycluster.services.grafana import SOURCE_UID

SOURCE = DataSourceRef(type_val="prometheus", uid=SOURCE_UID)
COLUMNS = 24
"""How wide Grafana's grid is."""
TAG = "raycluster"

LOWEST = float("-inf")

TOKENS_PER_SECOND = "suffix: tok/s"
REQUESTS_PER_SECOND = "suffix: req/s"


@dataclass(frozen=True)
class Line:
    """A query in PromQL, and what its series are called: text, or text with `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Limit:
    """From this value on, the colour is another."""

    value: float
    colour: str


def warn(at: float, *, bad: float) -> tuple[Limit, Limit]:
    """Return limits for what should be low: yellow from `at`, red from `bad`."""
    return Limit(at, "yellow"), Limit(bad, "red")


def wanted(at: float, *, fair: float | None = None) -> tuple[Limit, ...]:
    """Return limits for what should be at least `at`: green from there, yellow from `fair`."""
    middle = () if fair is None else (Limit(fair, "yellow"),)
    return Limit(LOWEST, "red"), *middle, Limit(at, "green")


def figure(
    title: str, says: str, unit: str, line: Line, *, limits: Sequence[Limit] = (), width: int = 6
) -> stat.Panel:
    """Return the newest value in large digits, and how it went in the background."""
    return (
        stat.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .grid_pos(_size(width, 4))
        .unit(unit)
        .no_value("no data")
        .thresholds(_thresholds(limits))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(_query(line, 0))
    )


def graph(
    title: str,
    says: str,
    unit: str,
    *lines: Line,
    limits: Sequence[Limit] = (),
    width: int = 8,
    stacked: bool = False,
    top: float | None = None,
) -> timeseries.Panel:
    """Return lines over time from zero up; `top` is where the axis ends, at least."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .grid_pos(_size(width, 8))
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(limits))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(looks.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "max", "lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(looks.TooltipDisplayMode.MULTI)
            .sort(looks.SortOrder.DESCENDING)
        )
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    if limits:
        dashed = looks.GraphThresholdsStyleMode.DASHED
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(dashed))
    if top is not None:
        made.axis_soft_max(top)
    for place, line in enumerate(lines):
        made.with_target(_query(line, place))
    return made


def bars(title: str, says: str, unit: str, line: Line, *, width: int = 8) -> bargauge.Panel:
    """Return the newest value of each series as a bar."""
    return (
        bargauge.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .grid_pos(_size(width, 8))
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(()))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(_query(line, 0))
    )


AnyPanel = stat.Panel | timeseries.Panel | bargauge.Panel


def chooser(name: str, label: str, series: str) -> dashboard.QueryVariable:
    """Return a choice among the values that the label `name` of a series has; all at first."""
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({series}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def page(
    name: str,
    title: str,
    says: str,
    sections: Sequence[tuple[str, Sequence[AnyPanel]]],
    variables: Sequence[dashboard.QueryVariable] = (),
) -> dashboard.Dashboard:
    """Return a dashboard of titled sections, whose panels stand from left to right.

    Raises ValueError where panels leave a gap on the grid, or have no room side by side.
    """
    made = (
        dashboard.Dashboard(title)
        .uid(f"raycluster-{name}")
        .description(says)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .link(
            dashboard.DashboardLink("Dashboards of this cluster")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
            .as_dropdown(False)
        )
    )
    for variable in variables:
        made.with_variable(variable)
    for heading, panels in sections:
        _check_widths(heading, [panel.build() for panel in panels])
        made.with_row(dashboard.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    for number, placed in enumerate(made.build().panels or (), start=1):
        placed.id_val = number
    return made


def _check_widths(heading: str, panels: Sequence[Panel]) -> None:
    at = 0
    for panel in panels:
        at = (at % COLUMNS) + (panel.grid_pos.w if panel.grid_pos else 0)
        if at > COLUMNS:
            raise ValueError(f"{heading}: {panel.title} has no room beside its neighbours")
    if at != COLUMNS:
        raise ValueError(f"{heading}: the last line ends at column {at} of {COLUMNS}")


def _size(width: int, height: int) -> GridPos:
    return GridPos(x=0, y=0, w=width, h=height)  # the dashboard places what is at its corner


def _query(line: Line, place: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .ref_id("ABCDEFGH"[place])
        .expr(line.expr)
        .legend_format(line.legend)
        .range()
    )


def _thresholds(limits: Sequence[Limit]) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    for limit in limits:
        if limit.value == LOWEST:
            steps = [Threshold(value=None, color=limit.colour)]
        else:
            steps.append(Threshold(value=limit.value, color=limit.colour))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
