"""`raycluster logs`: what nodes, services and replicas wrote."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import SpecOption
from raycluster.commands._options import complete_targets
from raycluster.core import iteration
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.logs.lines import View
    from raycluster.logs.read import Line

LINES = 100  # of each source, where nothing else is asked for

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET]...",
        help=(
            "`app` (default): all replicas; a model, MODEL#NUMBER or a replica's ID: some of them;"
            " a host's name: its Ray logs; `gateway` or another service: on all hosts;"
            " HOST/gateway: on one host; `all`: everything."
        ),
        autocompletion=complete_targets,
        show_default=False,
    ),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Follow new lines until Ctrl-C.")]
Tail = Annotated[
    int | None,
    typer.Option(
        "--tail",
        "-n",
        help=f"Number of last lines of each log. Default: {LINES}, or all with --since or --grep.",
        min=0,
        show_default=False,
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only newer lines: 10m, 1h30m, 90 (seconds), or 2026-11-26T10:00:00Z.",
        show_default=False,
    ),
]
Grep = Annotated[
    str | None,
    typer.Option(
        "--grep",
        "-g",
        metavar="REGEX",
        help="Only lines that match this regular expression.",
        show_default=False,
    ),
]
IgnoreCase = Annotated[bool, typer.Option("--ignore-case", "-i", help="With --grep: ignore case.")]


def logs(
    targets: Targets = None,
    *,
    follow: Follow = False,
    tail: Tail = None,
    since: Since = None,
    grep: Grep = None,
    ignore_case: IgnoreCase = False,
    spec: SpecOption = None,
) -> None:
    """Print logs of replicas, nodes or services, with the cause of a failure first.

    Exit code 1 if one of several sources could not be read.
    """
    opened = session.open_session(spec)
    from raycluster.logs.choose import seconds_ago, unknown
    from raycluster.logs.cluster import causes, find
    from raycluster.logs.lines import View, pattern
    from raycluster.logs.read import LogRequest, read

    wanted = pattern(grep, ignore_case=ignore_case) if grep is not None else None
    young = None if since is None else seconds_ago(since, time.time())
    if tail is None and since is None and grep is None:
        tail = LINES
    problems: list[str] = []

    def fail(text: str) -> None:
        problems.append(text)
        _tell(text)

    with opened.fleet() as fleet:
        found = find(opened.spec, fleet, targets or ["app"], fail)
        if found.guess and follow:
            raise unknown(opened.spec, found.guess)
        if found.state:
            apps = {each.app for each in found.chosen.replicas}
            for cause in causes(opened.spec, found.state, fleet, apps):
                _tell(f"cause: {cause}")
        colour = _console.out().is_terminal and "NO_COLOR" not in os.environ
        view = View(prefix=found.mixed, colour=colour, grep=wanted)
        with iteration.ended(read(found.sources, LogRequest(follow, tail, young), fail)) as lines:
            heard = _show(lines, view, at_once=follow)
    if found.guess and not heard:
        raise unknown(opened.spec, found.guess)
    if problems:
        raise typer.Exit(1)


def _show(lines: Iterable[Line], view: View, *, at_once: bool) -> bool:
    """Write the lines; return whether there was any, shown or not."""
    heard = False
    out = sys.stdout.buffer
    for line in lines:
        heard = True
        if line.note:
            _tell(f"{line.label}: {line.text.decode(errors='replace')}")
        elif (shown := view.line(line.label, line.text)) is not None:
            out.write(shown)
            if at_once:
                out.flush()
    out.flush()
    return heard


def _tell(text: str) -> None:
    """Write what is not a log beside it, after what came before."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
