"""What several commands take on the command line, beside what `session` offers to all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycluster.plan.actions import Only
    from raycluster.spec import ClusterSpec


def complete_hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the spec's hosts that begin like this, for the shell; none without a spec."""
    found = _spec_at_hand(ctx)
    names = [host.name for host in found.hosts] if found else []
    return [name for name in names if name.startswith(incomplete)]


def complete_parts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the parts that `--only` takes and that begin like this, for the shell."""
    parts = ["head", "workers", "app", "gateway", *complete_hosts(ctx, "")]
    return [part for part in dict.fromkeys(parts) if part.startswith(incomplete)]


def complete_processes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of processes that begin like this, for the shell; none without a spec."""
    found = _spec_at_hand(ctx)
    if found is None:
        return []
    from raycluster.services.processes import processes

    return [name for name in processes(found) if name.startswith(incomplete)]


def complete_targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return what `logs` can be asked for and begins like this, for the shell."""
    found = _spec_at_hand(ctx)
    if found is None:
        return []
    from raycluster.logs.choose import targets

    return [name for name in targets(found) if name.startswith(incomplete)]


def _spec_at_hand(ctx: typer.Context) -> ClusterSpec | None:
    """Return the spec that the line names so far, or else the folder; a shell wants no errors."""
    from raycluster.core.errors import RayclusterError
    from raycluster.spec import locate, read_spec

    try:
        return read_spec(locate(ctx.params.get("spec")))
    except (RayclusterError, OSError):
        return None


OnlyOption = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="Limit to one part: head, workers, app, gateway, or a host's name.",
        show_default=False,
        autocompletion=complete_parts,
    ),
]


def only_part(spec: ClusterSpec, given: str | None) -> Only:
    """Return the part that `--only` names. Raises UsageError."""
    from raycluster.core.errors import UsageError
    from raycluster.plan.actions import EVERYTHING, Only

    if given is None:
        return EVERYTHING
    names = {host.name for host in spec.hosts}
    match given:
        case "head" | "workers" | "app":
            return Only(given)
        case "gateway" if spec.gateway is not None:
            return Only(given, spec.head_host.name if spec.gateway.on == "head" else None)
        case _ if given in names:
            return Only(host=given)
    services = ["gateway"] if spec.gateway else []
    known = ", ".join(["head", "workers", "app", *services, *sorted(names - {"head"})])
    raise UsageError(
        f"{given!r} is not a part of this cluster", where="--only", hint=f"one of {known}"
    )


def after_dashes(words: list[str]) -> tuple[str, ...]:
    """Return the command without the `--` that a person may put before it."""
    return tuple(words[1:] if words[:1] == ["--"] else words)
