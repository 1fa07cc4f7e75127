"""A whole run: check the input, open the output, send what is left, say what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from raycluster.batch.input_summary import InputSummary, check_lines, summarize
from raycluster.batch.job import Refused, RequestShape, to_job
from raycluster.batch.ledger import Ledger
from raycluster.batch.report import BatchSummary
from raycluster.core.errors import RayclusterError, UsageError
from raycluster.core.interfaces import Tell
from raycluster.openai_client.files import AS_LINES, PromptFile
from raycluster.serve.asking.result import AskedLine, Fingerprint
from raycluster.serve.asking.retrying_client import Tries


@dataclass(frozen=True)
class BatchOptions:
    """The command line. `limit` counts lines of the input.

    `concurrency` is the most requests at once; None leaves it to the way.
    """

    input: Path
    output: Path
    shape: RequestShape = field(default_factory=RequestShape)
    concurrency: int | None = None
    tries: Tries = field(default_factory=Tries)
    limit: int | None = None
    strict: bool = False
    order: bool = False
    retry_errors: bool = False
    json: bool = False


@dataclass(frozen=True)
class BatchConsole:
    """Where words go: `out` is standard output, `tell` takes notes, `progress` passing lines."""

    out: TextIO
    tell: Tell
    progress: Tell


@dataclass(frozen=True)
class Task:
    """What a way has to do: bring each line that is due to a result in the ledger."""

    options: BatchOptions
    file: PromptFile
    fingerprint: Fingerprint
    input_summary: InputSummary
    ledger: Ledger
    console: BatchConsole

    @property
    def left(self) -> int:
        """How many lines have no result yet."""
        return self.input_summary.lines - self.ledger.ok - self.ledger.failed

    def due(self) -> Iterator[AskedLine | Refused]:
        """Yield what is without a result at that moment."""
        shape = replace(self.options.shape, column=self.file.column)
        for number, item in self.file.items():
            if number > self.input_summary.last:
                return
            if not self.ledger.has(number):
                yield to_job(number, item, shape)


@dataclass(frozen=True)
class Sent:
    """What a way did: where to, in how many seconds, how many requests; and whether to its end."""

    where: str = ""
    seconds: float = 0.0
    sent: int = 0
    retried: Mapping[str, int] = field(default_factory=dict)
    interrupted: bool = False


Runner = Callable[[Task], Sent]
"""Does the task; raises RayclusterError."""


def run(options: BatchOptions, runner: Runner, console: BatchConsole) -> BatchSummary:
    """Bring every line of the input to a result in the output.

    Raises UsageError before anything is reached, RayclusterError when the endpoint is away or
    lines failed, and KeyboardInterrupt after the summary of an interrupted run.
    """
    _check(options)
    before = _identity(options.input)
    file = PromptFile.at(options.input, options.shape.column)
    input_summary = summarize(file, options.limit)
    fingerprint = Fingerprint(input_summary.digest, options.shape.digest)
    with Ledger(options.output, fingerprint, input_summary.last) as ledger:
        if options.strict or not ledger.ok + ledger.failed:
            _check_input(options, file, input_summary, console.tell)
        if options.retry_errors:
            console.tell(f"{ledger.drop_errors():,} failed lines will be sent again")
        summary = _go(runner, Task(options, file, fingerprint, input_summary, ledger, console))
        if options.order and not summary.left:
            ledger.put_in_order()
    console.out.write((json.dumps(summary.to_json()) if options.json else summary.text()) + "\n")
    console.out.flush()
    if _identity(options.input) != before:
        raise RayclusterError(
            "changed during the run: results may belong to other lines",
            where=str(options.input),
            hint="run it again with another output file",
        )
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.failed:
        raise RayclusterError(
            f"{summary.failed:,} of {summary.lines:,} lines failed; each says why in its `error`",
            where=str(options.output),
            hint="run the same command with --retry-errors to send them again",
        )
    return summary


def _check(options: BatchOptions) -> None:
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
            raise UsageError(
                f"{value:g} is not greater than zero", where=option, hint="use a number > 0"
            )
    if tries.retries < 0:
        raise UsageError("less than zero", where="--max-retries", hint="0 tries each line once")
    source, output = options.input, options.output
    if str(output) == "-":
        raise UsageError(
            "a batch goes on from its output, so that is a file",
            where="--output",
            hint="-o FILE; then cat FILE",
        )
    if str(source) == "-" or (source.exists() and not source.is_file()):
        raise UsageError(
            "is not a file that can be read again",
            where=str(source),
            hint="save the input to a file first: resuming needs it",
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError("is the input", where="--output", hint="give another file")


def _identity(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), hint="name a readable file"
        ) from error
    return facts.st_size, facts.st_mtime_ns


def _check_input(
    options: BatchOptions, file: PromptFile, input_summary: InputSummary, tell: Tell
) -> None:
    """Look at every line before the first is sent, whatever the limit; raises UsageError."""
    refusals = check_lines(file, tell)
    if refusals.count == input_summary.total:
        line, reason = refusals.first[0]
        raise UsageError(
            f"none of its {input_summary.total} lines is a request; line {line}: {reason}",
            where=str(options.input),
            hint=f'{AS_LINES}, or with "url" and "body"; --column NAME for their column',
        )
    if refusals.count and options.strict:
        raise UsageError(
            "\n".join(refusals.notes()),
            where=str(options.input),
            hint="nothing was sent; without --strict such lines get an error line",
        )
    for note in refusals.notes():
        tell(note)


def _go(runner: Runner, task: Task) -> BatchSummary:
    before = task.input_summary.lines - task.left
    if before:
        task.console.tell(f"{before:,} of {task.input_summary.lines:,} lines are done already")
    done = runner(task) if task.left else Sent()
    return BatchSummary(
        input=str(task.options.input),
        output=str(task.options.output),
        base_url=done.where,
        lines=task.input_summary.lines,
        before=before,
        ok=task.ledger.ok,
        failed=task.ledger.failed,
        seconds=round(done.seconds, 3),
        sent=done.sent,
        retried=done.retried,
        interrupted=done.interrupted,
    )
