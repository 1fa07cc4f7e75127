"""`raycluster status`: is it serving, how well, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.spec import ClusterSpec
    from raycluster.status.ask import Standing

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")]
Interval = Annotated[float, typer.Option(help="Seconds between refreshes with --watch.", min=0.2)]


def status(
    spec: SpecPath = None,
    named: SpecOption = None,
    watch: Watch = False,
    interval: Interval = 2.0,
    as_json: Json = False,
) -> None:
    """Show nodes, models, metrics, costs and endpoints. Exit code 3: there is a problem."""
    opened = session.open_session(spec, named)
    from raycluster.status.ask import StatusWatcher

    # While hosts are waited for, and what they are reached with first.
    Thread(target=_load, args=(opened.spec,), daemon=True).start()
    with (
        opened.fleet(reconnect_in_background=watch) as fleet,
        StatusWatcher(opened.spec, fleet) as watcher,
    ):
        if watch and not as_json:
            _watch(watcher.look, interval)
        standing = watcher.look()
    if as_json:
        from raycluster.status.json import status_json

        _console.print_json(status_json(standing))
    else:
        from raycluster.status.view import status_view

        _console.out().print(status_view(standing), end="")
    if standing.health.problems:
        raise typer.Exit(3)


def _watch(look: Callable[[], Standing], interval: float) -> None:
    from raycluster.status import live

    console = _console.out()
    show = live.watch if console.is_terminal else live.print_each
    show(look, console, interval)


def _load(spec: ClusterSpec) -> None:
    """Import what will be needed: together these take longer than most answers of a cluster."""
    from raycluster.hosts.fleet import slow_imports

    later = ("prometheus_client.parser", "rich.table", "raycluster.status.view")
    for name in (*slow_imports(spec), *later):
        import_module(name)
