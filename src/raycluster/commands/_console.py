"""Where commands print, and what they ask."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console


def confirm(question: str, would: str, *, where: str, hint: str) -> None:
    """Return when a person says yes. Raises UsageError where there is nobody to ask."""
    from raycluster.core.console import asked
    from raycluster.core.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            f"{would}, but there is no terminal to ask for confirmation", where=where, hint=hint
        )
    if not asked(lambda: typer.confirm(question, err=True)):
        raise typer.Abort


def out() -> Console:
    """Return the console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """Return the console for progress and errors."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from raycluster.core.console import SafeConsole

    return SafeConsole(stream)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False) + "\n")
