"""`raycluster exec`: run a command inside a node, or inside what runs beside it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from raycluster.commands._arguments import SpecOption
from raycluster.commands._options import after_dashes, complete_processes
from raycluster.core import iteration
from raycluster.hosts import session

Node = Annotated[
    str,
    typer.Argument(
        help="A host's name for its Ray node; or `gateway`, `grafana`, HOST/gateway.",
        autocompletion=complete_processes,
    ),
]
Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.")]


def exec_(node: Node, command: Command, spec: SpecOption = None) -> None:
    """Run a command inside a node, with its files, environment and user."""
    opened = session.open_session(spec)
    from raycluster.core.errors import CommandError
    from raycluster.observe.liveness import ours
    from raycluster.services.processes import role_of

    host, role = role_of(opened.spec, node)
    with opened.fleet() as fleet:
        shell = ours(opened.spec, fleet.open(host)).runtime.inside(role)
        try:
            with iteration.ended(shell.stream(after_dashes(command))) as chunks:
                for channel, chunk in chunks:
                    stream = sys.stdout if channel == "stdout" else sys.stderr
                    stream.buffer.write(chunk)
                    stream.buffer.flush()
        except CommandError as error:
            raise typer.Exit(error.status if 0 < error.status < 256 else 1) from error
