"""`raycluster deploy`: roll out the app alone; end after a real completion came back."""

from __future__ import annotations

from raycluster import session
from raycluster.session import Json, SpecOption, SpecPath


def deploy(spec: SpecPath = None, named: SpecOption = None, as_json: Json = False) -> None:
    """Update the models to match the spec, leaving the hosts as they are."""
    opened = session.open_session(spec, named)
    secrets = opened.secrets()
    from raycluster.errors import raise_together
    from raycluster.plan import APP
    from raycluster.progress import progress
    from raycluster.report import fell_back, outcome_json, outcome_text
    from raycluster.up import up

    with opened.fleet() as fleet, progress(session.err()) as listen:
        outcome = up(opened.spec, fleet, secrets, listen, APP, command="raycluster deploy")
    if as_json:
        session.print_json(outcome_json(opened.spec, outcome))
    else:
        session.out().print(outcome_text(opened.spec, outcome))
    raise_together(fell_back(outcome))
