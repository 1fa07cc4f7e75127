"""`--offline` with everything but Ray: a real shell, a real job's process, real HTTP."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raycluster.batch.head_session import BatchHead
from raycluster.batch.offline import offline
from raycluster.batch.report import BatchSummary
from raycluster.batch.run import BatchConsole, BatchOptions, run
from raycluster.core.errors import (
    AuthError,
    ConnectionLostError,
    HostError,
    RayclusterError,
    RecordError,
    UnreachableError,
)
from raycluster.core.interfaces import Channel, Completed
from raycluster.hosts.transports.local import LocalTransport
from raycluster.serve.asking.retrying_client import Tries
from raycluster.serve.offline.order import STATE_FILE
from tests.unit.batch.conftest import Batch, Serve
from tests.unit.batch.test_ends import PROGRAM

JOB = Path(__file__).with_name("without_ray.py")
CHECKOUT = Path(__file__).parents[3]


class Still:
    """A job that another process has started."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._state = folder / "state.json"
        self._pid = pid

    def poll(self) -> int | None:
        if self._state.exists() and b'"over": true' in self._state.read_bytes():
            return 0
        with suppress(OSError):
            stat = Path(f"/proc/{self._pid}/stat").read_text()
            return None if stat.rpartition(")")[2].split()[0] != "Z" else -signal.SIGKILL
        return -signal.SIGKILL

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    terminate = kill

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.05)


@dataclass
class Box:
    """The inside of a head's box, and its jobs: this machine, with a folder of its own.

    Of the jobs' command only the folder is taken: `without_ray.py` runs there. `breaks` are the
    calls, counted from 1, at which the connection is lost.
    """

    folder: Path
    url: str
    pause: float = 0.0
    breaks: tuple[int, ...] = ()
    packages: tuple[str, ...] = ("pyarrow", "pandas")
    processes: dict[str, subprocess.Popen[bytes] | Still] = field(default_factory=dict)
    calls: int = 0
    opened: int = 0
    replicas: int = 1

    def env(self) -> dict[str, str]:
        extra = self.folder / "packages"
        for name in self.packages:
            (extra / name).mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        code = f"{CHECKOUT}:{extra}"
        return {"RAYCLUSTER_ROOT": str(self.folder), "PATH": path, "PYTHONPATH": code}

    def _count(self) -> None:
        self.calls += 1
        if self.calls in self.breaks:
            raise ConnectionLostError("cut", where="head")

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        self._count()
        assert env is None
        return LocalTransport("head").run(argv, input=input, env=self.env(), timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        raise AssertionError("not used")

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self._count()
        LocalTransport("head").put(path, content, mode=mode)

    def submit(self, job: str, command: str) -> None:
        self._count()
        assert self.status(job) == ""
        folder = command.rsplit(maxsplit=1)[-1]
        argv = [sys.executable, str(JOB), folder, str(self.pause)]
        self.processes[job] = subprocess.Popen(argv, env=self.env())

    def status(self, job: str) -> str:
        self._count()
        process = self.processes.get(job)
        if process is None:
            return ""
        code = process.poll()
        return {None: "RUNNING", 0: "SUCCEEDED"}.get(code, "FAILED")

    def said(self, job: str) -> str:
        return "Traceback:\nValueError: the last words"

    def stop(self, job: str) -> None:
        self._count()
        self.processes[job].terminate()

    def forget(self, job: str) -> None:
        self._count()
        del self.processes[job]

    @contextmanager
    def open(self) -> Iterator[BatchHead]:
        self.opened += 1
        port = urlsplit(self.url).port or 0
        yield BatchHead("head", self, self, "127.0.0.1", port, self.replicas)

    def left(self) -> list[Path]:
        return list((self.folder / "batch").glob("*"))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / "root", "")
    box.folder.mkdir()
    yield box
    for process in box.processes.values():
        process.kill()
        process.wait()


def go(
    batch: Batch,
    box: Box,
    concurrency: int | None = None,
    tries: Tries = Tries(timeout=20.0, backoff=0.01),  # noqa: B008  # frozen
) -> BatchSummary:
    chosen = BatchOptions(batch.input, batch.output, concurrency=concurrency, tries=tries)
    return run(
        chosen, offline(box.open), BatchConsole(batch.said, batch.told.append, lambda line: None)
    )


def questions(count: int) -> list[str]:
    return [f"question {n}" for n in range(count)]


def plain(batch: Batch) -> list[dict[str, Any]]:
    """Return the results in order, without what differs from run to run."""
    results = sorted(batch.results(), key=lambda r: int(r["id"].rpartition("-")[2]))
    return [r | {"response": r["response"] and r["response"] | {"request_id": ""}} for r in results]


def test_results_are_those_that_the_online_way_writes(
    batch: Batch, box: Box, serve: Serve, tmp_path: Path
) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "é\u2028 pretty"}]}
    batch.write(
        [
            {"custom_id": "ä", "url": "/v1/chat/completions", "body": chat},
            {"custom_id": "b", "url": "/v1/embeddings", "body": {"input": ["x"]}},
            '{"prompt": "torn',
            {"custom_id": "d", "prompt": "always:400", "max_tokens": 3},
            '"five"',
            {"prompt": "six", "temperature": 0.5},
        ]
    )
    server = serve()
    box.url = server.url
    with pytest.raises(RayclusterError, match="2 of 6 lines failed"):
        go(batch, box)
    through = plain(batch)
    batch.output.unlink()
    with pytest.raises(RayclusterError, match="2 of 6 lines failed"):
        batch.run(server.url)
    assert through == plain(batch)
    asked = [(call["path"], call["body"]) for call in server.finish()]
    half = len(asked) // 2
    assert sorted(map(str, asked[:half])) == sorted(map(str, asked[half:]))
    assert box.left() == [] and box.processes == {}


def test_every_line_gets_one_result_through_faults_and_breaks(
    batch: Batch, box: Box, serve: Serve
) -> None:
    count = 400
    batch.ask(*questions(count))
    box.url, box.breaks = serve(faults=20).url, (2, 4, 5, 9, 14)
    summary = go(batch, box, concurrency=16)
    assert (summary.ok, summary.failed, summary.left) == (count, 0, 0)
    assert sorted(r["response"]["body"]["said"] for r in batch.results()) == sorted(
        questions(count)
    )
    assert summary.sent == count + sum(summary.retried.values())
    assert {"http_429", "http_503", "http_500"} <= set(summary.retried)
    assert box.opened == 1 + len(box.breaks)
    assert sum("connected again" in line for line in batch.told) == 4  # two breaks in a row


def test_ctrl_c_stops_the_job_and_keeps_what_was_done(batch: Batch, box: Box, serve: Serve) -> None:
    batch.ask(*questions(300))
    server = serve()
    box.url, box.pause = server.url, 0.4

    def interrupt() -> None:
        while not batch.output.exists() or not batch.results():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        go(batch, box, concurrency=8)
    done = {r["response"]["body"]["said"] for r in batch.results()}
    assert 0 < len(done) < 300
    assert f"{len(done)} of 300 lines answered" in batch.said.getvalue()
    assert box.left() == [] and box.processes == {}
    before = len(done)
    summary = go(batch, box, concurrency=8)
    assert (summary.before, summary.ok) == (before, 300)
    again = [c["text"] for c in server.finish()][-summary.sent :]
    assert not done & set(again)


@pytest.mark.parametrize("runs", [True, False], ids=["which runs", "which is over"])
def test_a_job_that_was_left_is_found_again(
    batch: Batch, box: Box, serve: Serve, runs: bool
) -> None:
    batch.ask(*questions(200))
    server = serve()
    box.url, box.pause = server.url, 0.6
    first = multiprocessing.get_context("spawn").Process(target=go, args=(batch, box, 8))
    first.start()
    while not batch.output.exists() or not batch.results():
        time.sleep(0.05)
    [job] = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.kill()
    first.join()
    early = len(batch.results())
    if not runs:
        time.sleep(0.5)  # it goes on
        os.kill(int(job), signal.SIGKILL)
    [folder] = box.left()
    name = (folder / "job").read_text()
    box.processes[name] = Still(folder, int(job))
    summary = go(batch, box, concurrency=8)
    how = "is still running" if runs else "has ended"
    assert f"an earlier run's job {how}: {name}" in batch.told
    assert (summary.before, summary.ok) == (early, 200)
    assert sorted(r["response"]["body"]["said"] for r in batch.results()) == sorted(questions(200))
    assert len(server.finish()) <= (200 if runs else 200 + 4 * 8)
    assert box.left() == [] and box.processes == {}


@pytest.mark.parametrize("content", [b"[", b'{"sent": "x"}'])
def test_a_state_that_is_damaged_is_one_error(
    batch: Batch, box: Box, serve: Serve, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.ask("one")
    box.url = serve().url
    run = box.run

    def damaged(argv: Sequence[str], **more: Any) -> Completed:
        return Completed(0, content) if argv[-1].endswith(STATE_FILE) else run(argv, **more)

    monkeypatch.setattr(box, "run", damaged)
    with pytest.raises(RecordError, match="the job's state cannot be read"):
        go(batch, box)


def test_an_endpoint_that_stays_away_costs_no_line(batch: Batch, box: Box) -> None:
    batch.ask("one", "two")
    box.url = "http://127.0.0.1:9"
    with pytest.raises(RayclusterError, match=r"no response for 0\.5 s") as caught:
        go(batch, box, tries=Tries(retries=0, patience=0.5, backoff=0.01))
    assert "run the same command to continue" in caught.value.hint
    assert batch.results() == [] and box.left() == []


def test_a_key_that_is_wanted_fails_no_line(batch: Batch, box: Box, serve: Serve) -> None:
    batch.ask(*["always:401"] * 5)
    box.url = serve().url
    with pytest.raises(AuthError, match="responds with 401"):
        go(batch, box)
    assert batch.results() == []


@pytest.mark.parametrize("packages", [(), ("pandas",)])
def test_a_node_without_ray_datas_packages_says_so(
    batch: Batch, box: Box, packages: tuple[str, ...]
) -> None:
    batch.ask("one")
    box.packages = packages
    with pytest.raises(HostError, match="lacks pyarrow") as caught:
        go(batch, box)
    assert "ray[data,serve]" in caught.value.hint
    assert box.processes == {}


def test_a_job_that_ends_early_says_its_last_words(batch: Batch, box: Box, serve: Serve) -> None:
    batch.ask(*questions(100))
    box.url, box.pause = serve().url, 0.6

    def kill() -> None:
        while not batch.output.exists() or not batch.results():
            time.sleep(0.05)
        for process in box.processes.values():
            process.kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RayclusterError, match=r"ValueError: the last words; .* lines are left"):
        go(batch, box, concurrency=4)
    assert 0 < len(batch.results()) < 100
    assert go(batch, box, concurrency=64).ok == 100


def test_the_first_connection_must_be_made(batch: Batch, box: Box) -> None:
    @contextmanager
    def nowhere() -> Iterator[BatchHead]:
        raise UnreachableError("no way", where="head")
        yield

    batch.ask("one")
    chosen = BatchOptions(batch.input, batch.output)
    with pytest.raises(UnreachableError, match="no way"):
        run(
            chosen, offline(nowhere), BatchConsole(batch.said, batch.told.append, lambda line: None)
        )


def test_the_cluster_asks_no_other_endpoint(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, "batch", "in", "-o", "out", "--offline"]
    for more in (("--url", "http://127.0.0.1:9"), ("--api-key", "env:KEY"), ("--ca-file", "x")):
        done = subprocess.run(
            [*argv, *more], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "omit --url" in done.stderr) == (2, True), done.stderr
