"""A whole run: read the prompts, put load on the target, print and write what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from raycluster.bench.baseline import compare, parse_share, read_baseline
from raycluster.bench.dataset import Dataset, lines_of, parse_dataset, parse_synthetic, read_dataset
from raycluster.bench.export import to_vllm
from raycluster.bench.limits import parse_bounds, parse_limit, parse_limits
from raycluster.bench.load import Conditions, Keep, run_bench
from raycluster.bench.record import RequestRecord
from raycluster.bench.report import render
from raycluster.bench.results import ResultsFolder
from raycluster.bench.resume import begin, note, restore, run_of
from raycluster.bench.schedule import Closed, Load, Open, Replay, Shape, check_load
from raycluster.bench.server import ServerWatch
from raycluster.bench.summary import SCHEMA, BenchSummary
from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Tell
from raycluster.openai_client.lines import MESSAGES
from raycluster.openai_client.prompts import ENDPOINTS, Defaults, Prompt
from raycluster.openai_client.target import Target

if TYPE_CHECKING:
    from rich.console import Console

N = TypeVar("N", int, float)

_PROBE_SECONDS = 20.0
"""How long `--find-max` tries each rate, where nothing else limits it."""


@dataclass(frozen=True)
class BenchOptions:
    """The command line, with `prompts` or `synthetic`.

    `concurrency` and `rate` are numbers with commas between them, `find_max` and `goodput` limits;
    all may be empty.
    """

    prompts: str = ""
    synthetic: str = ""
    concurrency: str = ""
    rate: str = ""
    burstiness: float | None = None
    replay: float | None = None
    ramp: float = 0.0
    find_max: str = ""
    goodput: str = ""
    processes: int = 1
    calibrate: bool = True
    requests: int | None = None
    repeat: int = 1
    duration: float | None = None
    warmup: int | None = None
    timeout: float = 300.0
    seed: int = 0
    salt: bool = False
    column: str = ""
    multi_turn: bool = False
    endpoint: str = "chat"
    max_tokens: int | None = 256
    ignore_eos: bool = False
    limits: tuple[str, ...] = ()
    baseline: Path | None = None
    max_regress: str = ""
    output: Path | None = None
    resume: bool = False
    format: str = "table"


class Bench(Protocol):
    """Runs every level and returns the figures: `run_bench`, or what runs it elsewhere."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        target: Target,
        load: Load,
        *,
        tell: Tell,
        keep: Keep,
        conditions: Conditions | None = None,
    ) -> BenchSummary: ...


@dataclass(frozen=True)
class LoadTarget:
    """Where the load goes, and who makes it.

    `alive` tells whether the tunnel to it stands, where there is one; `watch` looks at the servers.
    """

    target: Target
    alive: Callable[[], bool] = lambda: True
    bench: Bench = run_bench
    watch: ServerWatch | None = None


def run(
    options: BenchOptions,
    connect: Callable[[], AbstractContextManager[LoadTarget]],
    *,
    stdin: BinaryIO,
    console: Console,
    tell: Tell,
) -> BenchSummary:
    """Read the prompts, reach the target with `connect`, measure, print on `console`, check limits.

    Raises UsageError before anything is reached, RayclusterError when all requests of a level
    failed, MissedLimitError, and KeyboardInterrupt after the report of an interrupted run.
    """
    if options.resume and options.format == "vllm":
        what = "vLLM's format can only hold the requests of one uninterrupted run"
        raise UsageError(what, where="--resume", hint="omit --format")
    if options.endpoint not in ENDPOINTS:
        raise UsageError(
            f"{options.endpoint!r} is not an endpoint",
            where="--endpoint",
            hint=", ".join(ENDPOINTS),
        )
    if options.output is not None and str(options.output) == "-":
        raise UsageError(
            "is a folder's name here, and - is none",
            where="--output",
            hint="--json prints the summary, --format vllm what vLLM's own client saves",
        )
    load = load_of(options)
    check_load(load)
    conditions = conditions_of(options)
    limits = tuple(parse_limit(text) for text in options.limits)
    defaults = Defaults(options.endpoint, options.max_tokens, options.ignore_eos)
    before = _baseline(options, load)
    most = parse_share(options.max_regress) if options.max_regress else None
    dataset = _dataset(options, defaults, stdin)
    for line in dataset.census.notes():
        tell(line)
    if options.ignore_eos and any(prompt.path == MESSAGES for prompt in dataset.prompts):
        what = f"{MESSAGES} knows no such parameter"
        raise UsageError(what, where="--ignore-eos", hint="remove it, or use another endpoint")
    if options.multi_turn or "mooncake" in dataset.census.formats:  # its lines share blocks
        conditions = replace(conditions, prefix_expected=True)
    conditions = _resumed(options, load, conditions, dataset.census.digest)
    records: dict[int, list[RequestRecord]] = {}
    with ResultsFolder(options.output, append=options.resume) as results:
        if options.output and not options.resume:
            begin(options.output, run_of(load, dataset.census.digest, conditions))

        def keep(level: int, record: RequestRecord) -> None:
            results.keep(level, record)
            if options.format == "vllm":
                records.setdefault(level, []).append(record)

        with connect() as reached:
            summary = reached.bench(
                dataset.prompts,
                reached.target,
                load,
                tell=tell,
                keep=keep,
                conditions=replace(conditions, alive=reached.alive, watch=reached.watch),
            )
        summary = replace(summary, census=dataset.census, limits=limits)
        if before is not None:
            comparison = compare(before, summary.to_json(), load.shapes)
            summary = replace(summary, comparison=comparison)
        results.finish(summary, tell)
    show(summary, records, console, options)
    if summary.interrupted:
        raise KeyboardInterrupt
    summary.check()
    if summary.comparison is not None and most is not None:
        summary.comparison.check(most)
    return summary


def _resumed(options: BenchOptions, load: Load, conditions: Conditions, digest: str) -> Conditions:
    """Return the conditions with what the folder of results is for; raises UsageError."""
    if options.output is None:
        if options.resume:
            raise UsageError("no run to resume", where="--resume", hint="name its folder with -o")
        return conditions
    conditions = replace(conditions, over=partial(note, options.output))
    if not options.resume:
        return conditions
    wanted = run_of(load, digest, conditions)
    before = restore(options.output, wanted, load, conditions)
    return replace(conditions, before=before)


def _dataset(options: BenchOptions, defaults: Defaults, stdin: BinaryIO) -> Dataset:
    if bool(options.prompts) == bool(options.synthetic):
        raise UsageError(
            "use one of them", where="--prompts, --synthetic", hint="--prompts FILE, or - for stdin"
        )
    if options.prompts:
        return read_dataset(
            options.prompts,
            defaults,
            stdin=stdin,
            column=options.column,
            multi_turn=options.multi_turn,
        )
    lines = lines_of(parse_synthetic(options.synthetic), options.seed)
    return parse_dataset(lines, defaults, where="--synthetic")


def _baseline(options: BenchOptions, load: Load) -> Mapping[str, Any] | None:
    """Return the earlier run to compare with, if one was named; raises UsageError."""
    if options.baseline is None:
        if options.max_regress:
            raise UsageError("alone", where="--max-regress", hint="also pass --baseline FILE")
        return None
    where = str(options.baseline)
    try:
        content = options.baseline.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=where, hint="use a summary.json"
        ) from error
    return read_baseline(content, load.shapes, schema=SCHEMA, where=where)


def show(
    summary: BenchSummary,
    records: Mapping[int, list[RequestRecord]],
    console: Console,
    options: BenchOptions,
) -> None:
    """Print the report, or one JSON object and nothing else; in vLLM's format one a level."""
    if options.format == "table":
        console.print(render(summary, plain=not console.is_terminal))
        return
    backend = "openai" if options.endpoint == "completions" else "openai-chat"
    objects = [summary.to_json()]
    if options.format == "vllm":
        objects = [
            to_vllm(summary, number, records.get(number, []), backend=backend)
            for number in range(len(summary.levels))
        ]
    for each in objects:
        console.file.write(json.dumps(each) + "\n")


def conditions_of(options: BenchOptions) -> Conditions:
    """Return what the options say apart from the load; raises UsageError."""
    return Conditions(
        options.processes,
        parse_bounds(options.goodput) if options.goodput else (),
        tuple(limit.from_intended() for limit in parse_limits(options.find_max))
        if options.find_max
        else (),
        calibrate=options.calibrate,
        prefix_expected=bool(options.synthetic and parse_synthetic(options.synthetic).prefix),
    )


def load_of(options: BenchOptions) -> Load:
    """Return the load that the options ask for; raises UsageError."""
    duration = options.duration
    if options.find_max and duration is None and options.requests is None:
        duration = _PROBE_SECONDS
    return Load(
        _shapes(options),
        requests=options.requests,
        repeat=options.repeat,
        duration=duration,
        ramp=options.ramp,
        warmup=options.warmup,
        timeout=options.timeout,
        seed=options.seed,
        salt=options.salt,
    )


def _shapes(options: BenchOptions) -> tuple[Shape, ...]:
    slots = [_number(text, "--concurrency", int) for text in _parts(options.concurrency)]
    rates = [_number(text, "--rate", float) for text in _parts(options.rate)]
    if options.replay is not None:
        for option, given in (
            ("--concurrency", slots),
            ("--rate", rates),
            ("--find-max", options.find_max),
            ("--ramp", options.ramp),
            ("--repeat", options.repeat > 1),
            ("--burstiness", options.burstiness is not None),
        ):
            if given:
                what = "the file's timestamps say when requests are sent"
                raise UsageError(what, where=option, hint="omit either it or --replay")
        return (Replay(options.replay),)
    if options.find_max:
        if slots:
            what = "a cap on requests in flight would hide the rate that --find-max looks for"
            raise UsageError(what, where="--concurrency", hint="remove it")
        if len(rates) > 1:
            raise UsageError(
                "several values with --find-max", where="--rate", hint="give the one to start from"
            )
        rates = rates or [1.0]
    if len(slots) > 1 and rates:
        raise UsageError(
            "several values with --rate", where="--concurrency", hint="one value caps the rate"
        )
    if rates:
        burstiness = 1.0 if options.burstiness is None else options.burstiness
        return tuple(Open(rate, slots[0] if slots else None, burstiness) for rate in rates)
    if options.burstiness is not None:
        raise UsageError("alone", where="--burstiness", hint="also pass --rate")
    return tuple(Closed(count) for count in slots or [8])


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _number(text: str, option: str, kind: Callable[[str], N]) -> N:
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a number", where=option, hint="such as 1,8,32"
        ) from error
