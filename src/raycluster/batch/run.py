"""A whole run: check the input, open the output, send what is left, say what came of it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from raycluster.batch.census import Census, check_lines, take_census
from raycluster.batch.job import Refused, Shape, to_job
from raycluster.batch.ledger import Ledger
from raycluster.batch.report import Progress, Summary
from raycluster.batch.source import items
from raycluster.batch.work import Work
from raycluster.contracts import Tell
from raycluster.errors import RayclusterError, UsageError
from raycluster.openai_wire.target import Target, allow_connections, check_address, tls_context
from raycluster.serve.asking.asker import Counts, Tries
from raycluster.serve.asking.result import Job, Stamp
from raycluster.serve.asking.sender import Sender

Connect = Callable[[], AbstractContextManager[tuple[Target, Callable[[], None]]]]
"""Yields where to send, and a check that raises when the way there is gone for good."""


@dataclass(frozen=True)
class Options:
    """The command line. `limit` counts lines of the input; `concurrency` is the most at once."""

    input: Path
    output: Path
    shape: Shape = field(default_factory=Shape)
    concurrency: int = 64
    tries: Tries = field(default_factory=Tries)
    limit: int | None = None
    strict: bool = False
    order: bool = False
    retry_errors: bool = False
    json: bool = False


@dataclass(frozen=True)
class Voice:
    """Where words go: `out` is standard output, `tell` takes notes, `progress` passing lines."""

    out: TextIO
    tell: Tell
    progress: Tell


def run(options: Options, connect: Connect, voice: Voice) -> Summary:
    """Bring every line of the input to a result in the output.

    Raises UsageError before anything is reached, RayclusterError when the endpoint is away or
    lines failed, and KeyboardInterrupt after the summary of an interrupted run.
    """
    _check(options)
    before = _identity(options.input)
    census = take_census(options.input, options.limit)
    stamp = Stamp(census.digest, options.shape.digest)
    with Ledger(options.output, stamp, census.last) as ledger:
        if options.strict or not ledger.ok + ledger.failed:
            _check_input(options, census, voice.tell)
        if options.retry_errors:
            voice.tell(f"{ledger.drop_errors():,} failed lines are due again")
        summary = _send(options, connect, voice, census, ledger)
        if options.order and not summary.left:
            ledger.put_in_order()
    voice.out.write((json.dumps(summary.to_json()) if options.json else summary.text()) + "\n")
    voice.out.flush()
    if _identity(options.input) != before:
        raise RayclusterError(
            "was changed during the run: results may be of other lines",
            where=str(options.input),
            hint="run it again into another file",
        )
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.failed:
        raise RayclusterError(
            f"{summary.failed:,} of {summary.lines:,} lines failed; each says why in its `error`",
            where=str(options.output),
            hint="the same command with --retry-errors sends them again",
        )
    return summary


def _check(options: Options) -> None:
    tries = options.tries
    positive: list[tuple[str, float | None]] = [
        ("--concurrency", options.concurrency),
        ("--timeout", tries.timeout),
        ("--patience", tries.patience),
        ("--line-time", tries.line_time),
        ("--limit", options.limit),
        ("--max-tokens", options.shape.max_tokens),
    ]
    for option, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{value:g} is not above zero", where=option, hint="give a number > 0")
    if tries.retries < 0:
        raise UsageError("less than zero", where="--max-retries", hint="0 tries each line once")
    source, output = options.input, options.output
    if str(source) == "-" or (source.exists() and not source.is_file()):
        raise UsageError(
            "is no file that can be read again",
            where=str(source),
            hint="save the input in a file: going on after a break needs it",
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError("is the input", where="--output", hint="give another file")


def _identity(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), hint="give a readable file"
        ) from error
    return facts.st_size, facts.st_mtime_ns


def _check_input(options: Options, census: Census, tell: Tell) -> None:
    """Look at every line before the first is sent, whatever the limit; raises UsageError."""
    refusals = check_lines(options.input, tell)
    if refusals.count == census.total:
        line, reason = refusals.first[0]
        raise UsageError(
            f"none of its {census.total} lines is a request; line {line}: {reason}",
            where=str(options.input),
            hint='a line is {"prompt": "..."} or {"custom_id": ..., "url": ..., "body": ...}',
        )
    if refusals.count and options.strict:
        raise UsageError(
            "\n".join(refusals.notes()),
            where=str(options.input),
            hint="nothing was sent; without --strict such lines get an error line",
        )
    for note in refusals.notes():
        tell(note)


def _send(
    options: Options, connect: Connect, voice: Voice, census: Census, ledger: Ledger
) -> Summary:
    before, began = ledger.ok + ledger.failed, time.monotonic()
    counts, shown, interrupted = Counts(), "", False
    if before:
        voice.tell(f"{before:,} of {census.lines:,} lines are done already")
    if before < census.lines:
        with connect() as (target, check):
            check_address(target)
            slots = min(options.concurrency, census.lines - before)
            allow_connections(slots)
            tls = tls_context(target) if target.base_url.startswith("https") else None
            progress = Progress(census.lines)
            work = Work(
                _due(options, census, ledger),
                ledger,
                lambda: Sender(target.url(""), options.tries.timeout, target.headers, tls),
                where=target.shown,
                slots=slots,
                tries=options.tries,
                check=check,
                show=lambda work: voice.progress(_line(progress, work)),
            )
            began = time.monotonic()
            interrupted = _until_end(work)
            counts, shown = work.asker.counts, target.shown
    return Summary(
        input=str(options.input),
        output=str(options.output),
        base_url=shown,
        lines=census.lines,
        before=before,
        ok=ledger.ok,
        failed=ledger.failed,
        seconds=round(time.monotonic() - began, 3),
        sent=counts.sent,
        retried=counts.retried,
        interrupted=interrupted,
    )


def _line(progress: Progress, work: Work) -> str:
    ledger = work.ledger
    limit = int(work.asker.pace.limit)
    return progress.line(time.monotonic(), ledger.ok, ledger.failed, limit, work.asker.trouble)


def _due(options: Options, census: Census, ledger: Ledger) -> Iterator[Job | Refused]:
    for number, item in items(options.input):
        if number > census.last:
            return
        if not ledger.has(number):
            yield to_job(number, item, options.shape)


def _until_end(work: Work) -> bool:
    """Run to the end; return whether a person or SIGTERM ended it before."""
    try:
        with asyncio.Runner() as runner:
            runner.run(_ended_by_sigterm(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return True
    return False


async def _ended_by_sigterm(work: Work) -> None:
    task = asyncio.ensure_future(work.run())
    with _on_sigterm(task.cancel):
        await task


@contextmanager
def _on_sigterm(end: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGTERM, end)
    except (ValueError, RuntimeError):  # not in the main thread: signals are another's matter
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
