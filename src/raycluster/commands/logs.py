"""`raycluster logs`: what a node or the app wrote."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from raycluster import session
from raycluster.session import SpecOption

Target = Annotated[
    str,
    typer.Argument(
        metavar="[NODE|app]",
        help="A host's name, `app` for the replicas, `gateway`, `prometheus` or HOST/gateway.",
    ),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")]
Tail = Annotated[int, typer.Option("--tail", "-n", help="Lines from the end.", min=0)]
Since = Annotated[
    float | None, typer.Option(help="Only what is younger than this many seconds (Docker).")
]


def logs(
    target: Target = "app",
    follow: Follow = False,
    tail: Tail = 100,
    since: Since = None,
    spec: SpecOption = None,
) -> None:
    """Print the log of a node, or of the app's replicas."""
    opened = session.open_session(spec)
    from raycluster.inside import app_logs, role_of

    with opened.fleet() as fleet:
        if target == "app":
            lines = app_logs(opened.spec, fleet, follow=follow, tail=tail)
        else:
            host, role = role_of(opened.spec, target)
            runtime = fleet.open(host).runtime
            lines = runtime.logs(role, follow=follow, tail=tail, since=since)
        with session.ended(lines):
            for chunk in lines:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
