"""A whole run: read the prompts, put load on the target, print and write what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rich.console import Console

from raycluster.bench.baseline import compare, parse_share, read_baseline
from raycluster.bench.dataset import Dataset, parse_dataset, read_dataset
from raycluster.bench.limits import parse_limit
from raycluster.bench.load import run_bench
from raycluster.bench.report import render
from raycluster.bench.results import Results
from raycluster.bench.schedule import Closed, Load, Open, Shape, check_load
from raycluster.bench.summary import SCHEMA, Summary
from raycluster.bench.synthetic import lines_of, parse_synthetic
from raycluster.contracts import Tell
from raycluster.errors import UsageError
from raycluster.openai_wire.prompts import Defaults
from raycluster.openai_wire.target import Target

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Options:
    """The command line, with `prompts` or `synthetic`.

    `concurrency` and `rate` are numbers with commas between them, or empty.
    """

    prompts: str = ""
    synthetic: str = ""
    concurrency: str = ""
    rate: str = ""
    burstiness: float | None = None
    requests: int | None = None
    repeat: int = 1
    duration: float | None = None
    warmup: int | None = None
    timeout: float = 300.0
    seed: int = 0
    salt: bool = False
    endpoint: str = "chat"
    max_tokens: int | None = 256
    ignore_eos: bool = False
    limits: tuple[str, ...] = ()
    baseline: Path | None = None
    max_regress: str = ""
    output: Path | None = None
    json: bool = False


def run(
    options: Options,
    connect: Callable[[], AbstractContextManager[Target]],
    *,
    stdin: BinaryIO,
    console: Console,
    tell: Tell,
) -> Summary:
    """Read the prompts, reach the target with `connect`, measure, print on `console`, check limits.

    Raises UsageError before anything is reached, RayclusterError when all requests of a level
    failed, MissedLimitError, and KeyboardInterrupt after the report of an interrupted run.
    """
    if options.endpoint not in {"chat", "completions"}:
        raise UsageError(
            f"{options.endpoint!r} is no endpoint", where="--endpoint", hint="chat or completions"
        )
    load = load_of(options)
    check_load(load)
    limits = tuple(parse_limit(text) for text in options.limits)
    defaults = Defaults(options.endpoint, options.max_tokens, options.ignore_eos)
    before = _baseline(options, load)
    most = parse_share(options.max_regress) if options.max_regress else None
    dataset = _dataset(options, defaults, stdin)
    for note in dataset.census.notes():
        tell(note)
    with Results(options.output) as results:
        with connect() as target:
            summary = run_bench(dataset.prompts, target, load, tell=tell, keep=results.keep)
        summary = replace(summary, census=dataset.census, limits=limits)
        if before is not None:
            comparison = compare(before, summary.to_json(), load.shapes)
            summary = replace(summary, comparison=comparison)
        results.finish(summary)
    show(summary, console, as_json=options.json)
    if summary.interrupted:
        raise KeyboardInterrupt
    summary.check()
    if summary.comparison is not None and most is not None:
        summary.comparison.check(most)
    return summary


def _dataset(options: Options, defaults: Defaults, stdin: BinaryIO) -> Dataset:
    if bool(options.prompts) == bool(options.synthetic):
        raise UsageError(
            "give either one", where="--prompts, --synthetic", hint="--prompts FILE, or - for stdin"
        )
    if options.prompts:
        return read_dataset(options.prompts, defaults, stdin=stdin)
    lines = lines_of(parse_synthetic(options.synthetic), options.seed)
    return parse_dataset(lines, defaults, where="--synthetic")


def _baseline(options: Options, load: Load) -> Mapping[str, Any] | None:
    """Return the earlier run to compare with, if one was named; raises UsageError."""
    if options.baseline is None:
        if options.max_regress:
            raise UsageError("alone", where="--max-regress", hint="give --baseline FILE too")
        return None
    where = str(options.baseline)
    try:
        content = options.baseline.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=where, hint="give a summary.json"
        ) from error
    return read_baseline(content, load.shapes, schema=SCHEMA, where=where)


def show(summary: Summary, console: Console, *, as_json: bool) -> None:
    """Print one JSON object and nothing else, or the report."""
    if as_json:
        console.file.write(json.dumps(summary.to_json()) + "\n")
    else:
        console.print(render(summary, plain=not console.is_terminal))


def load_of(options: Options) -> Load:
    """Return the load that the options ask for; raises UsageError."""
    slots = [_number(text, "--concurrency", int) for text in _parts(options.concurrency)]
    rates = [_number(text, "--rate", float) for text in _parts(options.rate)]
    if len(slots) > 1 and rates:
        raise UsageError(
            "several values beside --rate", where="--concurrency", hint="one value caps the rate"
        )
    shapes: tuple[Shape, ...] = tuple(Closed(count) for count in slots or [8])
    if rates:
        burstiness = 1.0 if options.burstiness is None else options.burstiness
        shapes = tuple(Open(rate, slots[0] if slots else None, burstiness) for rate in rates)
    elif options.burstiness is not None:
        raise UsageError("alone", where="--burstiness", hint="give --rate too")
    return Load(
        shapes,
        requests=options.requests,
        repeat=options.repeat,
        duration=options.duration,
        warmup=options.warmup,
        timeout=options.timeout,
        seed=options.seed,
        salt=options.salt,
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _number(text: str, option: str, kind: Callable[[str], N]) -> N:
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a number", where=option, hint="such as 1,8,32"
        ) from error
