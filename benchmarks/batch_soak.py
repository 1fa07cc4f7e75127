"""Kills `raycluster batch` and its way to the endpoint again and again, and counts what comes out.

    python -m benchmarks.batch_soak [--lines 100000] [--kills 10]

A scripted endpoint in a process of its own answers 1% of the requests with 503 and cuts 0.1% of the
answers in their middle. The way there is a real sshd: runs take turns between the system's ssh and
the program's own channels. Each run but the last has all SSH sessions killed in its middle, and
then is itself killed with SIGKILL; the next one is the same command. Ten lines of the input are no
requests. Ends with 1 when a line has not exactly one result, a result is of another line, anything
but those ten failed, more than what was under way at a kill was asked twice, or a process took
200 MB.
"""

from __future__ import annotations

import argparse
import getpass
import json
import multiprocessing
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from benchmarks.figures import Limit, keep
from benchmarks.local import PROGRAM
from tests.contract.sshd import Sshd
from tests.mock_server import Call, MockServer, Script

UNAVAILABLE, CUT = 0.01, 0.001
DELAY = 0.01
CONCURRENCY = 64
MEMORY_MB = 200
WORDS = "the answer to this question is as long as answers of this kind often are " * 8
BAD = (
    *(b'{"custom_id": "torn', b"[1, 2]", b'{"prompt": ""}', b'{"x": 1}', b"\xff\xfe"),
    *(b'{"prompt": 7}', b'{"body": 1}', b'{"messages": []}', b'{"prompt": [""]}'),
    b'{"url": "/v1/x", "body": {}}',
)
QUESTION = "question {}"


# ---- the endpoint ----


def endpoint(pipe: Connection) -> None:
    """Answer until something comes in; then tell how often each question got a whole answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    dice, answered, faults = random.Random(0), Counter[str](), Counter[str]()

    def script(call: Call) -> Script:
        draw = dice.random()
        if draw < UNAVAILABLE:
            faults["503"] += 1
            return Script(status=503, content_type="application/json")
        question = str(call.body["messages"][0]["content"])
        call.body = {}
        message = {"role": "assistant", "content": f"{question}: {WORDS}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
        cut = draw < UNAVAILABLE + CUT
        if cut:
            faults["cut"] += 1
        else:
            answered[question] += 1
        ending = "cut" if cut else "done"
        return Script(content_type="application/json", body=body, delay=DELAY, ending=ending)

    with MockServer(script) as server:
        pipe.send(server.port)
        pipe.recv()
    pipe.send((dict(answered), dict(faults)))


@contextmanager
def served() -> Iterator[tuple[int, Connection]]:
    """Run the endpoint; yield its port, and the pipe that ends it."""
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=endpoint, args=(far,))
    process.start()
    try:
        yield near.recv(), near
    finally:
        process.kill()
        process.join()


# ---- the runs ----


@dataclass
class Run:
    """One process of `batch`. Times in seconds from its start; `killed`: by us."""

    way: str
    before: int
    lines: int = 0
    first_line: float = 0.0
    seconds: float = 0.0
    peak_mb: float = 0.0
    killed: bool = False
    status: int = 0


@dataclass
class Soak:
    """The folder of a soak, and what its runs need."""

    folder: Path
    sshd: Sshd
    lines: int
    read: int = 0
    known: int = 0

    @property
    def source(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    def prepare(self, api: int) -> None:
        """Write the input, and a spec for each way."""
        with self.source.open("wb") as file:
            for number in range(1, self.lines + 1):
                request = {"custom_id": f"c{number}", "prompt": QUESTION.format(number)}
                file.write(self.bad(number) or json.dumps(request).encode())
                file.write(b"\n")
        pin = f'host_key = "{self.sshd.fingerprint()}"\n'
        for way, line in (("system", ""), ("channels", pin)):
            (self.folder / f"{way}.toml").write_text(
                f'[cluster]\nname = "soak"\n[ssh]\nuser = "{getpass.getuser()}"\n'
                f'identity_file = "{self.sshd.folder / "client"}"\n'
                f'known_hosts = "{self.sshd.folder / "known_hosts"}"\n'
                f'[head]\nhost = "127.0.0.1"\nport = {self.sshd.port}\n{line}'
                f'[runtime]\nkind = "native"\n[[models]]\nname = "m"\n[ports]\napi = {api}\n'
            )

    def bad(self, number: int) -> bytes:
        """Return what stands on a line that is no request; nothing for others."""
        place, rest = divmod(number, self.lines // len(BAD))
        return b"" if rest else BAD[place - 1]

    def count(self) -> int:
        """Return how many whole lines the output has; reads on from where it was."""
        if self.output.exists():
            with self.output.open("rb") as file:
                file.seek(self.read)
                whole = file.read().rpartition(b"\n")[:2]
            self.read += sum(map(len, whole))
            self.known += whole[0].count(b"\n") + bool(whole[1])
        return self.known

    def run(self, way: str, log: TextIO, *, until: int = 0) -> Run:
        """Run to the end, or, with `until`, kill the sessions and then the process on the way."""
        row = Run(way, self.count(), killed=bool(until))
        spec = self.folder / f"{way}.toml"
        command = (PROGRAM, "batch", self.source, "-o", self.output, "--spec", spec)
        began, middle = time.monotonic(), (row.before + until) // 2
        with subprocess.Popen((*command, "-c", str(CONCURRENCY)), stdout=log, stderr=log) as batch:
            while batch.poll() is None:
                row.peak_mb = max(row.peak_mb, peak_mb(batch.pid))
                done = self.count()
                if not row.first_line and done > row.before:
                    row.first_line = time.monotonic() - began
                if until and done >= middle:
                    if middle == until:
                        batch.kill()
                        break
                    self.sshd.signal_workers(signal.SIGKILL)
                    middle = until
                time.sleep(0.05)
        row.status, row.seconds = batch.returncode, time.monotonic() - began
        row.lines = self.count() - row.before
        print(asdict(row), flush=True)
        return row


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has held so far; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1000 if found else 0.0


# ---- what came out ----


@dataclass(frozen=True)
class Outcome:
    """What is in the output: lines, ids once and more, answers of another line, errors."""

    lines: int
    missing: int
    twice: int
    wrong: int
    failed: int
    refused: int


def outcome(soak: Soak) -> Outcome:
    """Read the output, and hold each result against its line of the input."""
    seen: Counter[str] = Counter()
    wrong = failed = refused = 0
    with soak.output.open("rb") as file:
        for line in file:
            result = json.loads(line)
            custom_id = str(result["custom_id"])
            seen[custom_id] += 1
            if result["error"]:
                bad = custom_id.startswith("line-") and result["error"]["code"] == "invalid_line"
                refused += bad
                failed += not bad
                continue
            text = result["response"]["body"]["choices"][0]["message"]["content"]
            wrong += text.partition(":")[0] != QUESTION.format(custom_id[1:])
    wanted = {f"{'line-' if soak.bad(n) else 'c'}{n}" for n in range(1, soak.lines + 1)}
    twice = sum(count - 1 for count in seen.values())
    missing = len(wanted - set(seen)) + len(set(seen) - wanted)
    return Outcome(sum(seen.values()), missing, twice, wrong, failed, refused)


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rcb-")))
        port, pipe = stack.enter_context(served())
        sshd = Sshd(folder / "sshd").start()
        stack.callback(sshd.stop)
        soak = Soak(folder, sshd, options.lines)
        soak.prepare(port)
        log = stack.enter_context((folder / "log").open("w+"))
        ways = ["system", "channels"] * (options.kills // 2 + 1)
        began = time.monotonic()
        runs = [
            soak.run(way, log, until=(place + 1) * options.lines // (options.kills + 1))
            for place, way in enumerate(ways[: options.kills])
        ]
        runs.append(soak.run(ways[options.kills], log))
        seconds = time.monotonic() - began
        pipe.send(None)
        answered, faults = pipe.recv()
        log.seek(0)
        said = log.read()
        print(said[-600:])
        totals = {
            "seconds": seconds,
            "lines_per_s": options.lines / seconds,
            "faults": faults,
            "asked_again": sum(answered.values()) - len(answered),
            "connected_again": said.count("connected again"),
        }
        report(runs, outcome(soak), options.lines, totals)


def report(runs: list[Run], found: Outcome, lines: int, totals: dict[str, Any]) -> None:
    """Print what was counted, and keep it."""
    kills, bad = len(runs) - 1, len(BAD)
    again, back = totals["asked_again"], totals["connected_again"]
    ends = Counter(run.status for run in runs)
    print(found, totals)
    keep(
        "batch_soak",
        [totals, asdict(found), *(asdict(run) for run in runs)],
        [
            Limit(f"lines of {lines} without a result", found.missing, 0),
            Limit("results too many", found.twice + abs(found.lines - lines), 0),
            Limit("answers of another line", found.wrong, 0),
            Limit(f"error lines but the {bad} bad ones", found.failed, 0),
            Limit(f"of {bad} bad lines without their error", bad - found.refused, 0),
            Limit(f"asked again, {kills} kills of each kind", again, 2 * kills * CONCURRENCY),
            Limit(f"of {kills} broken connections not renewed", kills - back, 0),
            Limit("ends but by SIGKILL, and one with 1", len(runs) - ends[-9] - ends[1], 0),
            Limit("peak memory of a run, MB", max(run.peak_mb for run in runs), MEMORY_MB),
        ],
    )


if __name__ == "__main__":
    main()
