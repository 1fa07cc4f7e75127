"""The load made on another machine: what travels there, and what it says while it runs.

As a program, `python -m raycluster.bench.remote JOB`: reads a job, and prints a line of JSON for
each note and record, where the servers are to be looked at, and in the end for each level. Only the
side that listens can look at them: it says beside the job when it has.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from raycluster.bench.limits import SearchResult
from raycluster.bench.load import Conditions, Keep, generated, judged, run_bench
from raycluster.bench.record import RequestRecord, checked
from raycluster.bench.schedule import Load, Shape, shape_of
from raycluster.bench.server import ServerFigures
from raycluster.bench.stats import SampleStats
from raycluster.bench.summary import BenchSummary, Level
from raycluster.bench.verdict import Circumstances, Client
from raycluster.core.errors import AnswerError, RayclusterError
from raycluster.core.interfaces import Tell
from raycluster.core.templates import python_files
from raycluster.core.untrusted import read_json
from raycluster.core.wait import wait_for
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target

PARTS = (
    *("__init__.py", "core", "observe/__init__.py", "observe/engine_metrics.py"),
    *("bench", "openai_client", "serve"),
)
"""What of this package the program needs; beyond it, httpx and httptools."""
HINT = "raycluster bench, without --from"
_MOST_LEVELS = 1000
_LOOK_S = 60.0
"""After so long without a word, the program goes on: figures of servers are no reason to stop."""


@dataclass(frozen=True)
class RemoteRun:
    """A run: what is sent where, and how; `watched`: somebody looks at the servers meanwhile."""

    prompts: Sequence[Prompt]
    target: Target
    load: Load
    conditions: Conditions
    watched: bool = False

    def packed(self) -> bytes:
        """Return the job for the program, which runs the code of `code()`."""
        here = replace(self.conditions, alive=always, watch=None, over=_ignore)
        watched = self.conditions.watch is not None
        return pickle.dumps(replace(self, conditions=here, watched=watched))


def always() -> bool:
    """Return True: there is no tunnel that could break."""
    return True


def _ignore(level: Level) -> None:
    """Do nothing: levels are told of in the end."""


def code() -> bytes:
    """Return the program's code as a zip file for PYTHONPATH."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in PARTS:
            for path, content in python_files(part):
                archive.writestr(path, content)
    return packed.getvalue()


def looked_file(number: int) -> str:
    """Return the file beside the job that says: the servers were looked at, for this time."""
    return f"looked-{number}"


class RemoteListener:
    """Takes the program's lines, and makes of them what `run_bench` would have returned.

    `looked` is called with the number of each question to look at the servers, after the look.
    """

    def __init__(
        self, job: RemoteRun, tell: Tell, keep: Keep, looked: Callable[[int], None]
    ) -> None:
        self._job = job
        self._tell = tell
        self._keep = keep
        self._looked = looked
        self._servers: list[ServerFigures | None] = []
        self._records: dict[int, list[RequestRecord]] = {}
        self._levels: list[Level] = []
        self._found: SearchResult | None = None

    def take(self, line: bytes) -> None:
        """Take one line. Raises RayclusterError when it tells an error, or cannot be understood."""
        try:
            self._take(read_json(line, "--from").table())
        except (ValueError, LookupError, TypeError, AttributeError, AnswerError) as error:
            text = line[:200].decode(errors="replace").strip()
            raise RayclusterError(f"cannot parse {text!r}", where="--from", hint=HINT) from error

    def summary(self, started: float, *, interrupted: bool) -> BenchSummary:
        """Return the run so far. Raises KeyboardInterrupt when no request had ended by then."""
        levels = list(self._levels)
        for number in range(len(levels), len(self._records)):
            shapes = self._job.load.shapes
            shape = shapes[min(number, len(shapes) - 1)]
            seen = Circumstances(Client(None, 0.0), interrupted=interrupted)
            levels += self._level(number, shape, seen)
        if not levels and interrupted:
            raise KeyboardInterrupt
        if not levels:
            raise RayclusterError(
                "the program on the head ended without a figure", where="--from", hint=HINT
            )
        target = self._job.target
        model = target.model or self._job.prompts[0].model
        load = self._job.load
        return BenchSummary(started, target.shown, model, load, tuple(levels), found=self._found)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "note" in message:
            self._tell(str(message["note"]))
        elif "record" in message:
            level, record = (
                int(message["level"]),
                RequestRecord.from_json(checked(message["record"])),
            )
            if not 0 <= level <= _MOST_LEVELS:
                raise ValueError(level)
            self._records.setdefault(level, []).append(record)
            self._keep(level, record)
        elif "look" in message:
            self._look(message)
        elif "levels" in message:
            for number, told in enumerate(message["levels"]):
                client = dict(told["client"])
                lag = client.pop("loop_lag_ms")
                spread = None if lag is None else SampleStats(**lag)
                seen = Circumstances(
                    Client(spread, **client), repeated=int(told["repeated"]), salted=told["salted"]
                )
                _refuse_other_kinds(spread, seen.client)
                self._levels += self._level(number, shape_of(told["load"]), seen)
            if found := message["found"]:
                self._found = SearchResult(tuple(found["limits"]), found["kept"], found["missed"])
        else:
            what, where, hint = (str(part) for part in message["error"])
            raise RayclusterError(what, where=where, hint=hint)

    def _look(self, message: Mapping[str, Any]) -> None:
        watch = self._job.conditions.watch
        if watch and message["ago"] is None:
            watch.begin()
        elif watch:
            origin = time.monotonic() - float(message["ago"])
            self._servers.append(watch.end(origin, self._job.load.ramp))
        self._looked(int(message["look"]))

    def _level(self, number: int, shape: Shape, seen: Circumstances) -> Iterable[Level]:
        ramp = self._job.load.ramp
        records = self._records.get(number, [])
        steady = [record for record in records if record.intended >= ramp]
        if steady:
            seen = replace(
                seen,
                prefix_expected=self._job.conditions.prefix_expected,
                generated=generated(records),
                server=self._servers[number] if number < len(self._servers) else None,
            )
            yield judged(shape, steady, seen, self._job.conditions.goodput)


def _refuse_other_kinds(*values: object) -> None:
    """Raise TypeError where a figure is no number."""
    for value in values:
        figures = vars(value).values() if value is not None else ()
        if not all(isinstance(each, int | float | SampleStats | None) for each in figures):
            raise TypeError(value)


class _Asks:
    """Has the other side look at the servers, and waits until it has; a bench.server.Watch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = 0

    def begin(self) -> None:
        """Have it look, and go on looking."""
        self._ask(None)

    def end(self, origin: float, ramp: float = 0.0) -> None:  # noqa: ARG002  # it knows the load
        """Have it look a last time; what it saw stays there."""
        self._ask(time.monotonic() - origin)

    def _ask(self, ago: float | None) -> None:
        self._asked += 1
        _say(look=self._asked, ago=ago)
        answer = self._folder / looked_file(self._asked)
        wait_for(lambda: answer.exists() or None, timeout=_LOOK_S, interval=0.05)


def main(path: str) -> None:
    """Run a job and print what happens."""
    job = pickle.loads(Path(path).read_bytes())  # noqa: S301  # ours, beside this code
    watch = _Asks(Path(path).parent) if job.watched else None
    try:
        summary = run_bench(
            job.prompts,
            job.target,
            job.load,
            tell=lambda line: _say(note=line),
            keep=lambda level, record: _say(level=level, record=record.to_json()),
            conditions=replace(job.conditions, watch=watch),
        )
    except RayclusterError as error:
        _say(error=[error.what, error.where, error.hint])
        return
    found = asdict(summary.found) if summary.found else None
    _say(levels=[_end(level) for level in summary.levels], found=found)


def _end(level: Level) -> dict[str, Any]:
    seen = level.seen
    plain = {"repeated": seen.repeated, "salted": seen.salted}
    return {"load": level.shape.to_json(), "client": asdict(seen.client), **plain}


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
