"""`raycluster recipe`: known settings of open models, what fits, and what was measured."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.hosts import session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raycluster.core.interfaces import Facts
    from raycluster.recipes.catalog import Recipe
    from raycluster.recipes.fits import Placing
    from raycluster.recipes.measured import Measured

Action = Annotated[
    Literal["list", "show", "add", "record"],
    typer.Argument(help="List recipes, show one, add its model to the spec, or record a bench."),
]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Recipe or Hugging Face ID; for record, the summary.json of `bench -o`.",
        show_default=False,
    ),
]
Fits = Annotated[
    bool,
    typer.Option("--fits", help="Ask the hosts what fits on them; add: with arguments for that."),
]


def recipe(
    action: Action = "list",
    name: Name = None,
    named: SpecOption = None,
    *,
    fits: Fits = False,
    as_json: Json = False,
) -> None:
    """Known settings of open models: `list`, `show NAME`, `add NAME`; `record FILE` keeps a bench.

    `add` writes the model into the spec; `record` keeps what was measured in recipes.toml beside
    it, which `list` and `show` then show.
    """
    if (action == "list") == (name is not None):
        told = "takes no name" if name is not None else "needs a name"
        raise UsageError(f"{action} {told}", hint="raycluster recipe show qwen3-8b")
    if fits and action in ("show", "record"):
        raise UsageError(f"--fits: not with {action}", hint="raycluster recipe list --fits")
    if as_json and action in ("add", "record"):
        raise UsageError(f"--json: {action} writes a file", hint="leave --json out")
    if name is None:
        _list(named, fits=fits, as_json=as_json)
    elif action == "show":
        _show(name, named, as_json=as_json)
    elif action == "add":
        _add(name, named, fits=fits)
    else:
        _record(Path(name), named)


def _list(named: Path | None, *, fits: bool, as_json: bool) -> None:
    from raycluster.recipes.catalog import catalog
    from raycluster.recipes.fits import best, ranked

    recipes = catalog().recipes
    placings: dict[str, Placing | None] | None = None
    found = list(recipes.values())
    unseen: dict[str, str] = {}
    proven = _measured(named)
    if fits:
        opened = session.open_session(None, named)
        facts, unseen = _facts(opened)
        placings = {name: best(each, opened.spec, facts) for name, each in recipes.items()}
        found = ranked(found, placings, proven)
    if as_json:
        told = [_plain(each, proven.get(each.model), placings) for each in found]
        _console.print_json({"schema": 1, "recipes": told, "unseen": unseen})
    else:
        _print(found, proven, placings)
    if unseen:
        raise typer.Exit(3)


def _print(
    found: Sequence[Recipe],
    proven: Mapping[str, Measured],
    placings: Mapping[str, Placing | None] | None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    from raycluster.plan.sizing.memory import in_gib

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("RECIPE", "SIZE", "WEIGHTS", "LEAST GPU", "FITS" if placings else "MODEL", "RUN"):
        number = title in ("SIZE", "WEIGHTS", "LEAST GPU")
        table.add_column(title, justify="right" if number else "left", no_wrap=number)
    for each in found:
        cells = (
            each.name,
            _billions(each.parameters),
            in_gib(each.weights),
            in_gib(each.least_memory()),
            _place(placings[each.name]) if placings else each.model,
            _run(proven.get(each.model)),
        )
        table.add_row(*map(Text, cells))
    _console.out().print(table)


def _show(name: str, named: Path | None, *, as_json: bool) -> None:
    from raycluster.plan.sizing.memory import in_gib
    from raycluster.recipes.catalog import USUAL_TOKENS, catalog
    from raycluster.spec.example import toml_value

    known = catalog()
    found = known.find(name)
    measured = _measured(named).get(found.model)
    if as_json:
        _console.print_json({"schema": 1, **_plain(found, measured, None)})
        return
    context = found.shape.context
    tokens = min(USUAL_TOKENS, context or USUAL_TOKENS)
    lines = [
        f"{found.name}: {found.model}",
        f"  parameters  {_billions(found.parameters)}",
        f"  context     {context:,} tokens" if context else "  context     unknown",
    ]
    for quantization in found.quantizations:
        title = quantization or found.published
        _, weights = found.loaded(quantization)
        least = in_gib(found.least_memory(quantization))
        lines.append(
            f"  {title:<11} {in_gib(weights)} of weights, a GPU of {least} for {tokens:,} tokens"
        )
    lines += [f"  {key} = {toml_value(value)}" for key, value in found.engine_args.items()]
    lines += [f"  note        {found.note}"] if found.note else []
    lines += ["  gated       its terms have to be accepted; HF_TOKEN"] if found.gated else []
    lines.append(f"  run         {_run(measured)}")
    lines.append(f"  arguments   accepted by the parser of vLLM {known.vllm}")
    lines.append(f"  sources     of {known.checked}")
    lines += [f"    {fact}: {source}" for fact, source in found.sources.items()]
    _console.out().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _add(name: str, named: Path | None, *, fits: bool) -> None:
    from raycluster.recipes.catalog import catalog
    from raycluster.recipes.fits import best
    from raycluster.recipes.writing import append, lines_of
    from raycluster.spec import read_spec

    found = catalog().find(name)
    opened = session.open_session(None, named)
    if any(found.model in (m.location, *m.names) for m in opened.spec.models):
        raise UsageError(
            f"{found.model} is in the spec already",
            where=str(opened.path),
            hint=f"raycluster recipe show {found.name} tells its arguments",
        )
    measured = _measured(named).get(found.model)
    proven = dict(measured.engine_args) if measured else {}
    table: dict[str, Any] = {"name": found.model, "engine_args": proven or found.arguments()}
    comment = f"recipe {found.name}, {_run(measured)}"
    if fits:
        facts, _ = _facts(opened)
        place = best(found, opened.spec, facts)
        if place is None or place.problem:
            where = f"{place.host}: {place.problem}" if place else "none could be asked"
            raise RayclusterError(
                f"fits on no host: {where}", where=found.name, hint="raycluster recipe list --fits"
            )
        table["hosts"] = list(place.hosts) or None
        table["engine_args"] = place.arguments(found)
        comment += f"; for {place.hardware}"
    block = lines_of("models", table, comment)
    append(opened.path, block, lambda text: read_spec(opened.path, text=text))
    sys.stdout.write(block)
    sys.stderr.write(f"added to {opened.path}; next: raycluster plan\n")
    if found.gated and "HF_TOKEN" not in opened.spec.secrets:
        sys.stderr.write(
            f"note: {found.model} is gated: accept its terms at huggingface.co, and set HF_TOKEN "
            "under [secrets]\n"
        )


def _record(given: Path, named: Path | None) -> None:
    from raycluster.hosts.fleet import all_or_raise
    from raycluster.observe.cluster import observe
    from raycluster.observe.facts import facts_of
    from raycluster.recipes.measured import FILE, measured_in, parse, ran
    from raycluster.recipes.writing import append, lines_of

    path = given / "summary.json" if given.is_dir() else given
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "give the folder of `raycluster bench -o`, or its summary.json"
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    opened = session.open_session(None, named)
    measured = measured_in(content, str(path), opened.spec.cluster.name)
    with opened.fleet() as fleet:
        state = observe(opened.spec, fleet)
        for host in state.hosts.values():
            if host.problem:
                raise host.problem
        facts = all_or_raise(fleet.each(state.hosts, facts_of))
        now = ran(opened.spec, state, facts, measured.model)
    target = opened.path.parent / FILE
    table = {**asdict(measured), **now}
    append(
        target,
        lines_of("measured", table, "raycluster recipe record"),
        lambda text: parse(text, str(target)),
        new=True,
    )
    sys.stderr.write(f"added to {target}\n")


def _facts(opened: session.OpenedSpec) -> tuple[dict[str, Facts], dict[str, str]]:
    """Return what each host that can be asked offers, and why others cannot, which is told.

    Raises what keeps all of them from it.
    """
    from raycluster.core.accelerators.choice import lack
    from raycluster.hosts.fleet import all_or_raise
    from raycluster.observe.facts import facts_of

    with opened.fleet() as fleet:
        told = fleet.reach(opened.spec.hosts, facts_of)
    known: dict[str, Facts] = {}
    unseen: dict[str, str] = {}
    for host in opened.spec.hosts:
        seen = told[host.name]
        if isinstance(seen, RayclusterError):
            unseen[host.name] = seen.what
        elif trouble := lack(host.gpus, seen.gpus):
            unseen[host.name] = trouble.what
        else:
            known[host.name] = seen
    if not known:
        all_or_raise(told)
    for host_name, what in unseen.items():
        sys.stderr.write(f"note: {host_name} is left out: {what}\n")
    return known, unseen


def _measured(named: Path | None) -> dict[str, Measured]:
    """Return what was measured last of each model, by the file beside the spec, if there is one."""
    from raycluster.recipes.measured import latest, read_measured
    from raycluster.spec import locate

    return latest(read_measured(locate(named).parent))


def _plain(
    found: Recipe, measured: Measured | None, placings: Mapping[str, Placing | None] | None
) -> dict[str, Any]:
    """Return a recipe for a program."""
    told: dict[str, Any] = {
        "name": found.name,
        "model": found.model,
        "parameters": found.parameters,
        "context": found.shape.context,
        "quantizations": [
            {
                "quantization": each or found.published,
                "weights_bytes": found.loaded(each)[1],
                "least_gpu_bytes": found.least_memory(each),
            }
            for each in found.quantizations
        ],
        "engine_args": found.engine_args,
        "gated": found.gated,
        "note": found.note,
        "sources": found.sources,
        "measured": asdict(measured) if measured else None,
    }
    if placings is not None:
        place = placings[found.name]
        told["fits"] = asdict(place) if place else None
    return told


def _place(place: Placing | None) -> str:
    """Return how a replica fits, or why not."""
    if place is None:
        return "no: no host could be asked"
    if place.problem:
        return f"no: {place.host}: {place.problem}"
    told = [f"{place.host}: {place.gpus} of {place.hardware}" if place.gpus else place.host]
    told += ["on CPUs"] if not place.gpus else []
    told += [place.quantization] if place.quantization else []
    told += [f"{place.length:,} tokens"] if place.length else []
    told += [f"up to {place.at_once:.1f} at once"] if place.at_once else []
    return ", ".join(told)


def _run(measured: Measured | None) -> str:
    return measured.summary if measured else "not run here"


def _billions(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f}B"
