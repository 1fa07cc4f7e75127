"""`raycluster status`: is it serving, on what, and what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster import session
from raycluster.session import Json, SpecOption, SpecPath

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from raycluster.health import Health

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")]
Interval = Annotated[float, typer.Option(help="Seconds between refreshes.", min=0.2)]


def status(
    spec: SpecPath = None,
    named: SpecOption = None,
    watch: Watch = False,
    interval: Interval = 2.0,
    as_json: Json = False,
) -> None:
    """Show nodes, models, engines and endpoints. Exit code 3: something is wrong."""
    opened = session.open_session(spec, named)
    from raycluster.health import look
    from raycluster.report import status_json, status_view

    with opened.fleet() as fleet:
        health = look(opened.spec, fleet)
        if as_json:
            session.print_json(status_json(health))
        elif watch:
            with _shown(session.out()) as show:
                while True:
                    show(status_view(health))
                    time.sleep(interval)
                    health = look(opened.spec, fleet)
        else:
            session.out().print(status_view(health))
    _end(health)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[RenderableType], object]]:
    """Yield what shows a view in place of the one before it, or after it where nobody looks on."""
    if not console.is_terminal:
        yield console.print
        return
    from rich.live import Live

    with Live(console=console, screen=True) as live:
        yield live.update


def _end(health: Health) -> None:
    if health.problems:
        raise typer.Exit(3)
