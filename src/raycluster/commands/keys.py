"""`raycluster keys`: the gateway's keys and their limits, and lines for a new one."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.spec.services import Gateway, Key

Action = Annotated[
    Literal["list", "new"],
    typer.Argument(help="List the keys in the spec, or print lines for a new one."),
]
Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Owner of the new key.", show_default=False),
]


def keys(
    action: Action = "list", name: Name = None, named: SpecOption = None, *, as_json: Json = False
) -> None:
    """List the gateway's keys with their limits; `new NAME` prints a key and the lines for it.

    Nothing is changed: the spec is the list of keys. Without its lines a key is revoked.
    """
    from raycluster.core.errors import UsageError

    if (action == "new") == (name is None):
        told = "needs the owner's name" if name is None else "takes no name"
        raise UsageError(f"{action} {told}", hint="raycluster keys new NAME")
    if action == "new" and as_json:
        raise UsageError("--json: new prints lines to copy", hint="leave --json out")
    opened = session.open_session(None, named)
    if name is not None:
        sys.stdout.write(_lines(opened, name))
        return
    found = _listed(opened.spec.gateway)
    if as_json:
        _console.print_json({"schema": 1, "keys": found})
    else:
        _show(found)


def _lines(opened: session.OpenedSpec, name: str) -> str:
    import re
    import secrets

    from pydantic import TypeAdapter, ValidationError

    from raycluster.core.errors import UsageError
    from raycluster.spec.types import KeyOwner

    try:
        TypeAdapter(KeyOwner).validate_python(name)
    except ValidationError:
        what = "letters, digits and . _ -, at most 64, are expected"
        raise UsageError(what, where="NAME", hint="raycluster keys new alice") from None
    gate = opened.spec.gateway
    if gate and name in gate.sources:
        raise UsageError(
            f"{name!r} has a key already",
            where=str(opened.path),
            hint="change the value at its source, or choose another name",
        )
    variable = re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_KEY"
    variable = variable if variable[0].isalpha() else f"KEY_{variable}"
    table = f'"{name}"' if "." in name else name
    section = "" if gate else "[gateway]\n\n"
    return (
        f"# where raycluster runs; it is shown once and stored nowhere\n"
        f"export {variable}=sk-{secrets.token_urlsafe(32)}\n\n"
        f"# in {opened.path}, then: raycluster up --only gateway\n"
        f'{section}[gateway.keys.{table}]\nkey = "env:{variable}"\n'
    )


def _listed(gate: Gateway | None) -> list[dict[str, Any]]:
    from raycluster.spec.services import Key

    if gate is None:
        return []
    found = {**{o: Key(key=source) for o, source in gate.api_keys.items()}, **gate.keys}
    return [_plain(owner, key) for owner, key in sorted(found.items())]


def _plain(owner: str, key: Key) -> dict[str, Any]:
    ends = key.expires
    return {
        "key": owner,
        "models": list(key.models) if key.models else None,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "tokens_per_day": key.tokens_per_day,
        "priority": key.priority,
        "expires": ends.isoformat() if ends else None,
        "expired": ends is not None and ends <= datetime.now(UTC),
    }


def _show(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    titles = ("KEY", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "TOKENS/DAY", "PRIORITY", "EXPIRES")
    for title in titles:
        number = "/" in title
        table.add_column(
            title, justify="right" if number else "left", overflow="fold", no_wrap=number
        )
    for key in found:
        ends = key["expires"] or ""
        cells = [
            key["key"],
            ", ".join(key["models"] or ["all"]),
            *(_number(key[n]) for n in ("requests_per_minute", "tokens_per_minute")),
            _number(key["tokens_per_day"]),
            key["priority"],
            f"{ends} (expired)" if key["expired"] else ends,
        ]
        table.add_row(*(Text(cell) for cell in cells))
    _console.out().print(table)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
