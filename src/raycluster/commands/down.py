"""`raycluster down`: remove everything of the cluster from its hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Purge = Annotated[
    bool,
    typer.Option(
        "--purge", help="Also remove the container image or the shared Python environment."
    ),
]


def down(
    spec: SpecPath = None,
    named: SpecOption = None,
    yes: Yes = False,
    purge: Purge = False,
    as_json: Json = False,
) -> None:
    """Stop the cluster and remove everything of it from its hosts."""
    opened = session.open_session(spec, named)
    name = opened.spec.cluster.name
    if not yes:
        hosts = ", ".join(h.name for h in opened.spec.hosts)
        _console.confirm(
            f"Remove cluster {name} from {hosts}?",
            f"would remove everything from {hosts}",
            where=name,
            hint="add --yes",
        )
    from raycluster.apply.host_removal import down as run
    from raycluster.report.progress import progress

    with opened.fleet() as fleet, progress(_console.err()) as listen:
        removed = run(opened.spec, fleet, listen, purge=purge)
    if as_json:
        _console.print_json({"schema": 1, "cluster": name, "removed": list(removed)})
    else:
        count = f"{len(removed)} items removed" if removed else "nothing to remove"
        _console.out().print(f"{name} is down: {count}")
