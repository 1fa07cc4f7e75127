"""`raycluster up`: bring the cluster to the spec; end after a real completion came back."""

from __future__ import annotations

from typing import Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.commands._options import OnlyOption, only_part
from raycluster.hosts import session

Verify = Annotated[bool, typer.Option(help="Read and verify the model files on all hosts again.")]


def up(
    spec: SpecPath = None,
    named: SpecOption = None,
    only: OnlyOption = None,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Create or update the cluster to match the spec. A second run changes nothing.

    Exit code 3: the cluster serves, but not with the engine asked for, or with ports that anyone
    can reach, or the record of hosts that were removed from the spec could not be read.
    """
    opened = session.open_session(spec, named)
    part = only_part(opened.spec, only)
    secrets = opened.secrets()
    from raycluster.apply.converge import up as run
    from raycluster.check.open_ports import exposed
    from raycluster.core.errors import raise_together
    from raycluster.plan.actions import EVERYTHING
    from raycluster.report.outcome import fell_back, outcome_json, outcome_text
    from raycluster.report.progress import progress

    with opened.fleet() as fleet:
        with progress(_console.err()) as listen:
            outcome = run(opened.spec, fleet, secrets, listen, part, verify=verify)
        if as_json:
            _console.print_json(outcome_json(opened.spec, outcome))
        else:
            console = _console.out()
            console.print(outcome_text(opened.spec, outcome, private=console.is_terminal))
        open_ports = exposed(opened.spec, fleet) if part == EVERYTHING else ()
    raise_together((*outcome.unclean, *fell_back(outcome), *open_ports, *outcome.doubts))
