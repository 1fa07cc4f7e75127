"""`raycluster deploy`: roll out the app alone; end after a real completion came back."""

from __future__ import annotations

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session


def deploy(spec: SpecPath = None, named: SpecOption = None, as_json: Json = False) -> None:
    """Update the models to match the spec, leaving the hosts as they are."""
    opened = session.open_session(spec, named)
    secrets = opened.secrets()
    from raycluster.apply.converge import up
    from raycluster.core.errors import raise_together
    from raycluster.plan.actions import APP
    from raycluster.report.outcome import fell_back, outcome_json, outcome_text
    from raycluster.report.progress import progress

    with opened.fleet() as fleet, progress(_console.err()) as listen:
        outcome = up(opened.spec, fleet, secrets, listen, APP, command="raycluster deploy")
    if as_json:
        _console.print_json(outcome_json(opened.spec, outcome))
    else:
        _console.out().print(outcome_text(opened.spec, outcome))
    raise_together(fell_back(outcome))
