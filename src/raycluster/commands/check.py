"""`raycluster check`: is the spec right, and could the hosts hold the cluster."""

from __future__ import annotations

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session


def check(spec: SpecPath = None, named: SpecOption = None, as_json: Json = False) -> None:
    """Check the spec and all hosts without changing anything. Exit code 3: a check failed."""
    opened = session.open_session(spec, named)
    secrets = opened.secrets()
    from raycluster.check.hosts import check_hosts, check_plan
    from raycluster.report.outcome import checks_json, checks_view

    with opened.fleet() as fleet:
        findings = check_hosts(opened.spec, fleet, secrets.registry)
        findings += check_plan(opened.spec, fleet, secrets, findings)
    if as_json:
        _console.print_json(checks_json(opened.spec, findings))
    else:
        _console.out().print(checks_view(findings))
    if any(not f.passed for f in findings):
        raise typer.Exit(3)
