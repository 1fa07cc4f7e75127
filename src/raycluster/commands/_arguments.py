"""The options that most commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="SPEC",
        help="The cluster's TOML file. Default: $RAYCLUSTER_SPEC, else ./cluster.toml.",
        show_default=False,
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        "-s",
        help="The cluster's TOML file. Default: $RAYCLUSTER_SPEC, else ./cluster.toml.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
