"""`raycluster usage`: requests, tokens and money by key and model."""

from __future__ import annotations

import csv
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.status.usage import Row, UsageReport

Since = Annotated[
    str,
    typer.Option(
        help="Start of the period: a duration such as 12h or 7d, or a time.", metavar="WHEN"
    ),
]
By = Annotated[
    Literal["key", "model"] | None,
    typer.Option(help="Sum by key or by model. Default: a row for each key and model."),
]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]


def usage(
    spec: SpecPath = None,
    named: SpecOption = None,
    since: Since = "7d",
    by: By = None,
    *,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show requests, tokens and costs by key and model, as Prometheus has recorded them."""
    from raycluster.core.errors import UsageError
    from raycluster.logs.choose import seconds_ago

    if as_json and as_csv:
        raise UsageError("--json and --csv: choose one", hint="name one of them")
    seconds = max(1, round(seconds_ago(since, time.time())))
    opened = session.open_session(spec, named)
    if opened.spec.monitoring is None or not opened.spec.monitoring.prometheus:
        raise UsageError(
            "the spec has no Prometheus, which records usage",
            where=str(opened.path),
            hint="add [monitoring] and run: raycluster up",
        )
    found = _ask(opened, seconds, by)
    if as_json:
        _console.print_json(_json(found))
    elif as_csv:
        _write_csv(found)
    else:
        _show(found, by)


def _ask(
    opened: session.OpenedSpec, seconds: int, by: Literal["key", "model"] | None
) -> UsageReport:
    from raycluster.observe.liveness import ours
    from raycluster.status.usage import asked_at

    spec = opened.spec
    with opened.fleet() as fleet:
        head = ours(spec, fleet.open(spec.head_host))
        return asked_at(head.transport, spec, seconds, by)


def _plain(row: Row) -> dict[str, Any]:
    from raycluster.status.usage import NO_KEY

    return {
        "key": None if row.owner in ("", NO_KEY) else row.owner,
        "model": row.model or None,
        "requests": row.requests,
        "prompt_tokens": row.prompt,
        "cached_tokens": row.cached,
        "generated_tokens": row.generation,
        "cost": row.cost,
    }


def _json(found: UsageReport) -> dict[str, Any]:
    now = datetime.now(UTC)
    begin = datetime.fromtimestamp(now.timestamp() - found.seconds, UTC)
    return {
        "schema": 1,
        "since": begin.isoformat(timespec="seconds"),
        "until": now.isoformat(timespec="seconds"),
        "rows": [_plain(row) for row in found.rows],
        "total": {k: v for k, v in _plain(found.total).items() if k not in ("key", "model")},
        "currency": None if found.cost is None else found.currency,
        "cost_per_million_tokens": found.per_million,
    }


def _write_csv(found: UsageReport) -> None:
    names = list(_plain(found.total))
    writer = csv.DictWriter(sys.stdout, [*names, "currency"], lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        currency = found.currency if row.cost is not None else None
        writer.writerow({**_plain(row), "currency": currency})


def _show(found: UsageReport, by: Literal["key", "model"] | None) -> None:
    from rich.table import Table
    from rich.text import Text

    money = found.cost is not None
    titles = [*(["KEY"] if by != "model" else []), *(["MODEL"] if by != "key" else [])]
    numbers = ["REQUESTS", "PROMPT", "CACHED", "GENERATED", *([found.currency] if money else [])]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right")
    lines = [(_names(row, by), row) for row in found.rows]
    for names, row in [*lines, (["total", ""][: len(titles)], found.total)]:
        cells = [f"{n:,}" for n in (row.requests, row.prompt, row.cached, row.generation)]
        cells += [f"{row.cost or 0:.2f}"] if money else []
        table.add_row(*(Text(cell) for cell in (*names, *cells)))
    console = _console.out()
    console.print(table)
    if (price := found.per_million) is not None:
        console.print(
            f"{price:.2f} {found.currency} per million tokens (uncached prompt tokens and "
            "generated ones)"
        )


def _names(row: Row, by: Literal["key", "model"] | None) -> list[str]:
    from raycluster.status.usage import NO_KEY

    key = "(no key)" if row.owner == NO_KEY else row.owner
    return {"key": [key], "model": [row.model], None: [key, row.model]}[by]
