"""What several commands take on the command line, beside what `session` offers to all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycluster.plan import Only
    from raycluster.spec import ClusterSpec

OnlyOption = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="Only this part: head, workers, app, or a host's name.",
        show_default=False,
    ),
]


def only_part(spec: ClusterSpec, given: str | None) -> Only:
    """Return the part that `--only` names. Raises UsageError."""
    from raycluster.errors import UsageError
    from raycluster.plan import EVERYTHING, Only

    if given is None:
        return EVERYTHING
    names = {host.name for host in spec.hosts}
    match given:
        case "head" | "workers" | "app":
            return Only(given)
        case _ if given in names:
            return Only(host=given)
    known = ", ".join(["head", "workers", "app", *sorted(names - {"head"})])
    raise UsageError(
        f"{given!r} is no part of this cluster", where="--only", hint=f"one of {known}"
    )


def after_dashes(words: list[str]) -> tuple[str, ...]:
    """Return the command without the `--` that a person may put before it."""
    return tuple(words[1:] if words[:1] == ["--"] else words)
