"""`raycluster plan`: what `up` would do, what that needs, interrupts and costs."""

from __future__ import annotations

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.commands._options import OnlyOption, only_part
from raycluster.hosts import session


def plan(
    spec: SpecPath = None, named: SpecOption = None, only: OnlyOption = None, as_json: Json = False
) -> None:
    """Show what `up` would change, its disk and memory needs, interruptions and costs."""
    opened = session.open_session(spec, named)
    part = only_part(opened.spec, only)
    from raycluster.apply.converge import preview
    from raycluster.report.forecast import forecast_view
    from raycluster.report.outcome import plan_json, plan_text

    with opened.fleet() as fleet:
        actions, forecast = preview(opened.spec, fleet, opened.secrets(), part)
    if as_json:
        _console.print_json(plan_json(opened.spec, actions, forecast))
    else:
        _console.out().print(plan_text(actions))
        _console.out().print(forecast_view(forecast))
