"""The way through the cluster: a job on it asks the app from inside, and its results come here."""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from raycluster.batch.head_session import BatchHead, Open, ReconnectingSession, terminated
from raycluster.batch.job import Refused
from raycluster.batch.online import away, no_entry
from raycluster.batch.report import ProgressLine
from raycluster.batch.run import Runner, Sent, Task
from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError, RayclusterError, RecordError, UsageError
from raycluster.core.interfaces import PYTHON, Tell
from raycluster.core.stored_json import MOST, decode
from raycluster.serve.offline.order import (
    AWAY,
    INPUT_FILE,
    JOB_FILE,
    MODULE,
    NEEDED,
    NO_ENTRY,
    ORDER_FILE,
    RESULTS_FILE,
    STATE_FILE,
    JobState,
    Order,
    encode_job,
)
from raycluster.serve.rootcause import last_exception

PER_REPLICA = 64
"""Requests at once for each replica, where nothing else is said."""
CHUNK_BYTES = 4 << 20
MOST_BYTES = 256 << 20
"""Of one result."""
TICK_S = 1.0
STOP_S = 30.0
_LOOK = """
import importlib.util, os, sys
print(sys.executable)
print(os.environ["RAYCLUSTER_ROOT"])
def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(*(name for name in sys.argv[1:] if not there(name)))
"""


def offline(open_place: Open) -> Runner:
    """Return the way through the cluster that `open_place` leads to."""

    def runner(task: Task) -> Sent:
        with ReconnectingSession(
            open_place, task.options.tries.patience, task.console.tell
        ) as place:
            return _Run(task, place).run()

    return runner


class _Run:
    """One run of the command. The job's folder is named after input and options, and found by that;
    in it stands which job of Ray's it is."""

    def __init__(self, task: Task, place: ReconnectingSession) -> None:
        self._task = task
        self._place = place
        self._tell: Tell = task.console.tell
        self._python = self._folder = self._job = ""
        self._offset = self._results = 0
        self._progress = ProgressLine(task.input_summary.lines)

    def run(self) -> Sent:
        self._look()
        began = time.monotonic()
        state = JobState()
        interrupted = False
        try:
            with terminated():
                state = self._bring()
        except KeyboardInterrupt:
            interrupted = True
            self._tell("stopping the job; a second Ctrl-C leaves it running")
            state = self._stop()
        seconds = time.monotonic() - began
        if not interrupted:
            self._judge(state)
        self._place(self._clear)
        where = f"the cluster, through {self._place.host}"
        return Sent(where, seconds, state.sent, state.retried, interrupted)

    def _bring(self) -> JobState:
        """Bring every line to its result, as far as one job does; return how that ended."""
        for job in self._task.due():
            if isinstance(job, Refused):
                self._task.ledger.add(job.result)
        state = JobState()
        if self._job:
            runs = not self._place(lambda place: place.over(self._job))
            how = "is still running" if runs else "has ended"
            self._tell(f"an earlier run's job {how}: {self._job}")
            state = self._follow()
            if state.error and runs:
                return state
        if self._task.left:
            self._place(self._clear)
            self._job = f"raycluster-batch-{secrets.token_hex(6)}"
            self._offset = self._results = 0
            self._upload()
            self._place(self._submit)
            self._tell(f"runs on the cluster as job {self._job}")
            state = self._follow()
        return state

    # ---- the folder on the head ----

    def _look(self) -> None:
        """Find the job's folder, and its job. Raises HostError with what is missing there."""
        modules = (MODULE, *NEEDED)
        done = self._place(lambda place: place.shell.run((*PYTHON, "-c", _LOOK, *modules)))
        if done.exit_code:
            cause = last_exception(done.stderr.decode("utf-8", "replace")) or f"{done.exit_code}"
            raise HostError(f"the node's Python does not start: {cause}", where=self._place.host)
        self._python, root, missing = (*done.text.split("\n"), "", "")[:3]
        self._folder = (
            f"{root}/batch/{self._task.fingerprint.input}-{self._task.fingerprint.options}"
        )
        lacking = [name for name in missing.split() if name in NEEDED]
        if lacking:
            raise HostError(
                f"the node's environment lacks {' and '.join(lacking)}, needed by Ray Data",
                where=self._place.host,
                hint="use an environment or image with ray[data,serve], then run raycluster up; or "
                "omit --offline",
            )
        if missing:
            raise HostError(
                "the nodes have an older raycluster without --offline",
                where=self._place.host,
                hint="raycluster up",
            )
        path = f"{self._folder}/{JOB_FILE}"
        job = self._place(lambda place: place.shell.run(("head", "-c", "100", path))).text
        self._job = job if re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", job) else ""

    def _clear(self, place: BatchHead) -> None:
        """Remove what a job left, and what Ray keeps of it."""
        place.shell.run(("rm", "-rf", "--", self._folder))
        if self._job:
            place.jobs.forget(self._job)

    def _submit(self, place: BatchHead) -> None:
        if not place.jobs.status(self._job):
            command = shlex.join((self._python, "-m", MODULE, self._folder))
            place.jobs.submit(self._job, command)

    def _upload(self) -> None:
        """Put what is due onto the head, then the order, and which job it will be."""
        offset, count, began = 0, 0, self._task.left
        for content, lines in self._chunks():
            self._place(partial(self._append, offset, content))
            offset, count = offset + len(content), count + lines
            self._task.console.progress(f"{count:,} of {began:,} lines are on the head")
        options = self._task.options
        order = self._place(
            lambda place: Order(
                self._task.fingerprint,
                options.tries,
                place.address,
                place.port,
                options.concurrency or PER_REPLICA * max(1, place.replicas),
                self._task.input_summary.last,
            )
        )
        for name, content in ((ORDER_FILE, order.encode()), (JOB_FILE, self._job.encode())):
            self._place(partial(self._put, name, content))

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield the input in pieces, with how many lines each has."""
        content, lines = bytearray(), 0
        for job in self._task.due():
            if isinstance(job, Refused):
                continue
            content += encode_job(job)
            lines += 1
            if len(content) >= CHUNK_BYTES:
                yield bytes(content), lines
                content, lines = bytearray(), 0
        if content:
            yield bytes(content), lines

    def _append(self, offset: int, content: bytes, place: BatchHead) -> None:
        """Write a part of the input; may be done again after a break."""
        script = (
            'umask 077; mkdir -p "$1" && cd "$1" && touch "$2" && truncate -s "$3" "$2" '
            '&& cat >> "$2" && stat -c %s "$2"'
        )
        argv = ("sh", "-c", script, "sh", self._folder, INPUT_FILE, str(offset))
        done = place.shell.run(argv, input=content, timeout=600)
        if done.exit_code or done.text != str(offset + len(content)):
            said = clean(done.error_text or done.text, 300)
            raise HostError(
                f"the input cannot be written: {said}",
                where=place.host,
                hint="make room there",
            )

    def _put(self, name: str, content: bytes, place: BatchHead) -> None:
        place.shell.put(f"{self._folder}/{name}", content, mode=0o600)

    # ---- the job ----

    def _follow(self) -> JobState:
        """Bring results here until the job has ended; return how it ended.

        Raises HostError where no result came for longer than a line may take.
        """
        tries, ledger = self._task.options.tries, self._task.ledger
        quiet = tries.patience + max(tries.line_time, tries.timeout)
        came, heard = self._results, time.monotonic()
        while True:
            over = self._place(lambda place: place.over(self._job))
            while self._fetch() >= CHUNK_BYTES:
                pass
            ledger.sync()
            if self._results > came:
                came, heard = self._results, time.monotonic()
            line = self._progress.line(time.monotonic(), ledger.ok, ledger.failed)
            self._task.console.progress(line)
            if over:
                return self._state()
            if time.monotonic() - heard > quiet:
                raise HostError(
                    f"the job has brought no result for {quiet:g} s",
                    where=self._place.host,
                    hint="raycluster logs head; the job keeps running, and the same command "
                    "attaches to it again",
                )
            time.sleep(TICK_S)

    def _fetch(self) -> int:
        """Add the next whole lines of the results to the ledger; return how many bytes came."""
        size = CHUNK_BYTES
        while True:
            content = self._place(partial(self._read, size))
            whole = content[: content.rfind(b"\n") + 1]
            if whole or len(content) < size:
                break
            size *= 2  # a line that is longer than all of this
            if size > MOST_BYTES:
                what = f"a result is larger than {MOST_BYTES} bytes"
                raise RecordError(what, where=self._place.host, hint="raycluster logs head")
        for line in whole.splitlines(keepends=True):
            self._results += 1
            if self._results > self._task.input_summary.last:
                what = f"the job has more results than the {self._task.input_summary.last:,} lines"
                raise RecordError(what, where=self._place.host, hint="raycluster logs head")
            self._task.ledger.take(line)
        self._offset += len(whole)
        return len(content)

    def _read(self, size: int, place: BatchHead) -> bytes:
        script = 'tail -c "+$1" "$2" 2>/dev/null | head -c "$3"'
        path = f"{self._folder}/{RESULTS_FILE}"
        argv = ("sh", "-c", script, "sh", str(self._offset + 1), path, str(size))
        return place.shell.run(argv, timeout=600).stdout

    def _state(self) -> JobState:
        argv = ("head", "-c", str(MOST + 1), f"{self._folder}/{STATE_FILE}")
        told = self._place(lambda place: place.shell.run(argv)).stdout
        what, where = "the job's state", self._place.host
        state = decode(told, JobState, what=what, where=where) if told else JobState()
        if not state.over:
            said = self._place(lambda place: place.jobs.said(self._job))
            state.error = last_exception(said) or "the job ended before it was finished"
        return state

    def _stop(self) -> JobState:
        """End the job, and bring what it has done."""
        self._place(lambda place: place.jobs.stop(self._job))
        deadline = time.monotonic() + STOP_S
        while not self._place(lambda place: place.over(self._job)):
            if time.monotonic() > deadline:
                raise HostError("the job could not be stopped", where=self._place.host)
            time.sleep(TICK_S / 4)
        return self._follow()

    def _judge(self, state: JobState) -> None:
        """Raise the error that ended the job; what was answered is kept."""
        if not (state.error or self._task.left):
            return
        with suppress(RayclusterError):
            self._place(self._clear)
        if state.kind == NO_ENTRY:
            raise no_entry(UsageError(state.error), self._place.host)
        if state.kind == AWAY:
            raise away(UsageError(state.error), self._place.host)
        left = f"; {self._task.left:,} lines are left"
        raise RayclusterError(
            f"{state.error or 'the job has ended'}{left}",
            where=self._place.host,
            hint="see raycluster status, then run the same command to continue",
        )
