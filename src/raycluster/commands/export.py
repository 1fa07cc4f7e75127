"""`raycluster export`: the cluster's design as files for another tool."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster.commands._arguments import SpecOption, SpecPath
from raycluster.core.errors import UsageError
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.export.design import Design
    from raycluster.hosts.session import OpenedSpec


class Format(StrEnum):
    """Tool to write files for."""

    compose = "compose"
    systemd = "systemd"
    kuberay = "kuberay"


FormatArgument = Annotated[
    Format, typer.Argument(help="Tool to write files for.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder to create. Default: ./CLUSTER-FORMAT.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]
WithSecrets = Annotated[
    bool,
    typer.Option("--with-secrets", help="Include secrets, in files readable only by their owner."),
]


def export(  # noqa: PLR0917  # typer calls it by keyword
    format: FormatArgument,
    spec: SpecPath = None,
    named: SpecOption = None,
    output: Output = None,
    force: Force = False,
    with_secrets: WithSecrets = False,
) -> None:
    """Write files that run the cluster without raycluster."""
    if str(output) == "-":
        what = "is a folder's name here, and - is none"
        raise UsageError(what, where="--output", hint="-o DIR; then tar -c DIR")
    opened = session.open_session(spec, named)
    folder = output or Path(f"{opened.spec.cluster.name}-{format}")
    from raycluster.export.formats import FORMATS
    from raycluster.export.tree import check_free, write

    check_free(folder, force=force)
    tree = FORMATS[format](_design(opened, with_secrets=with_secrets))
    paths = [str(path) for path in write(tree, folder, force=force)]
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    sys.stderr.write(f"next: read {folder / 'README.md'}\n")


def _design(opened: OpenedSpec, *, with_secrets: bool) -> Design:
    import secrets as randomness

    from raycluster.core.interfaces import Secret
    from raycluster.export.design import Design, Given
    from raycluster.export.look import look

    given = None
    if with_secrets:
        given = Given(Secret(randomness.token_hex(32)), opened.secrets())
    with opened.fleet() as fleet:
        spec, addresses, gpus = look(opened.spec, fleet)
    return Design(spec, addresses, gpus, given)
