"""`raycluster plan`: what `up` would do, what that needs, interrupts and costs."""

from __future__ import annotations

from raycluster import session
from raycluster.commands.options import OnlyOption, only_part
from raycluster.session import Json, SpecOption, SpecPath


def plan(
    spec: SpecPath = None, named: SpecOption = None, only: OnlyOption = None, as_json: Json = False
) -> None:
    """Show what `up` would change, its disk and memory needs, interruptions and costs."""
    opened = session.open_session(spec, named)
    part = only_part(opened.spec, only)
    from raycluster.report import plan_json, plan_text
    from raycluster.report_forecast import forecast_view
    from raycluster.up import preview

    with opened.fleet() as fleet:
        actions, forecast = preview(opened.spec, fleet, opened.secrets(), part)
    if as_json:
        session.print_json(plan_json(opened.spec, actions, forecast))
    else:
        session.out().print(plan_text(actions))
        session.out().print(forecast_view(forecast))
