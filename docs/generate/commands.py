"""The commands with their arguments and options, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from docs.generate.text import cell, code, table
from raycluster.cli import app

PROGRAM = "raycluster"


def commands_reference() -> str:
    """Return a section for each command: what its `--help` says."""
    group: Any = typer.main.get_command(app)
    root = group.context_class(group, info_name=PROGRAM)
    return "\n\n".join((_command(group, root, "##"), *_commands(group, root, "##")))


def _commands(group: Any, context: Any, level: str) -> Iterator[str]:  # noqa: ANN401  # typer's own
    for name, command in group.commands.items():
        if command.hidden:
            continue
        inner = command.context_class(command, info_name=name, parent=context)
        yield _command(command, inner, level)
        if hasattr(command, "commands"):
            yield from _commands(command, inner, f"{level}#")


def _command(command: Any, context: Any, level: str) -> str:  # noqa: ANN401  # typer's own
    usage = command.get_usage(context).removeprefix("Usage: ")
    help_text = " ".join((command.help or "").split())
    parts = [f"{level} {context.command_path}", help_text, f"```\n{usage}\n```"]
    for kind, title in (("argument", "argument"), ("option", "option")):
        records = (
            parameter.get_help_record(context)
            for parameter in command.params
            if parameter.param_type_name == kind
        )
        rows = [(code(names), cell(words)) for names, words in filter(None, records)]
        parts.append(table((title, "meaning"), rows))
    return "\n\n".join(part for part in parts if part)
