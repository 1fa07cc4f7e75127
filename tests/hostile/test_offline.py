"""A head that lies about the job of `batch --offline`: its shell, its files and Ray's Jobs API.

What comes before, to find the head and to look at it, is in the runs of `status`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from raycluster.batch.head_session import BatchHead
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Channel, Completed
from raycluster.core.untrusted import ANSWER_BYTES, too_much
from raycluster.hosts.http import asking_client
from raycluster.hosts.ray_api import RayJobs
from raycluster.serve.asking.result import Result
from raycluster.serve.offline.order import (
    INPUT_FILE,
    ORDER_FILE,
    RESULTS_FILE,
    STATE_FILE,
    JobState,
    Order,
    decode_job,
)
from tests.hostile.attempt import Stage, attempt_offline, staged
from tests.hostile.host import SILENT, Spoil, ray_token
from tests.hostile.spoil import Spoiler
from tests.hostile.test_hostile import RUNS

SHARE = 0.05
"""Which part of the runs is for this."""
ROOT = "/raycluster"
BODY = {"object": "chat.completion", "choices": [{"message": {"content": "é"}}]}


class Head:
    """A head that does what a real one does, in memory, and says it as `spoil` makes it.

    A job is done when it is looked at the second time.
    """

    def __init__(self, spoil: Spoil) -> None:
        self._spoil = spoil
        self._files: dict[str, bytes] = {}
        self._jobs: dict[str, str] = {}

    @contextmanager
    def open(self) -> Iterator[BatchHead]:
        with asking_client(self._asked, 8265, token=ray_token()) as client:
            jobs = RayJobs("head", client)
            yield BatchHead("head", self, jobs, "10.0.0.1", 8000, 1)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        del mode
        self._files[path.rpartition("/")[2]] = content

    def stream(self, *_: object, **__: object) -> Iterator[tuple[Channel, bytes]]:
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, input: bytes = b"", **_: object) -> Completed:
        said = self._spoil(self._shell(argv, input))
        if len(said) > ANSWER_BYTES:
            raise too_much(argv[0], "head", ANSWER_BYTES)
        if said.endswith(SILENT):
            raise HostError(f"{argv[0]} did not end", where="head")
        return Completed(0, said)

    def _shell(self, argv: Sequence[str], given: bytes) -> bytes:
        words = " ".join(argv)
        if "find_spec" in words:
            return f"/usr/bin/python3\n{ROOT}\n\n".encode()
        if "truncate" in words:
            content = self._files.get(INPUT_FILE, b"")[: int(argv[-1])] + given
            self._files[INPUT_FILE] = content
            return b"%d\n" % len(content)
        if argv[0] == "rm":
            self._files.clear()
            return b""
        if "tail" in words:
            offset, size = int(argv[-3]) - 1, int(argv[-1])
            return self._files.get(RESULTS_FILE, b"")[offset : offset + size]
        return self._files.get(argv[-1].rpartition("/")[2], b"")

    def _asked(self, request: bytes, _seconds: float) -> bytes:
        method, path, *_ = request.split(b" ")
        return self._spoil(self._job(method.decode(), path.decode(), request))

    def _job(self, method: str, path: str, request: bytes) -> bytes:
        job = path.removeprefix("/api/jobs/").partition("/")[0]
        if method == "POST" and not job:
            job = json.loads(request.partition(b"\r\n\r\n")[2])["submission_id"]
            self._jobs[job] = "PENDING"
        elif job not in self._jobs:
            return _answer({"detail": "no such job"}, "404 Not Found")
        elif method == "DELETE":
            del self._jobs[job]
        elif path.endswith("/stop"):
            self._jobs[job] = "STOPPED"
        elif path.endswith("/logs"):
            return _answer({"logs": "ValueError: x\n"})
        elif self._jobs[job] == "RUNNING":
            self._done()
            self._jobs[job] = "SUCCEEDED"
        elif self._jobs[job] == "PENDING":
            self._jobs[job] = "RUNNING"
        return _answer({"submission_id": job, "status": self._jobs.get(job, "")})

    def _done(self) -> None:
        order = Order.decode(self._files[ORDER_FILE])
        lines = [decode_job(line) for line in self._files[INPUT_FILE].splitlines()]
        body = json.dumps(BODY).encode()
        self._files[RESULTS_FILE] = b"".join(
            Result(each.line, each.custom_id, 200, "r", body).encode(order.fingerprint)
            for each in lines
        )
        state = JobState(len(lines), {"http_503": 1}, over=True)
        self._files[STATE_FILE] = state.encode()


def _answer(told: object, status: str = "200 OK") -> bytes:
    content = json.dumps(told).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A place for all runs."""
    with staged(tmp_path_factory.mktemp("offline") / "stage") as made:
        yield made


def test_a_head_that_says_what_a_real_one_says(stage: Stage) -> None:
    outcome = attempt_offline(stage, Head(lambda said: said).open)
    assert outcome.code == 0, outcome.err
    assert "4 of 4 lines answered" in outcome.out


def test_whatever_a_head_says_of_its_job_the_command_ends(stage: Stage) -> None:
    for seed in range(round(RUNS * SHARE)):
        try:
            attempt_offline(stage, Head(Spoiler(seed)).open)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def _endless(said: bytes) -> bytes:
    """Say for ever that the job runs."""
    return said.replace(b'"SUCCEEDED"', b'"RUNNING"  ')


def _again(said: bytes) -> bytes:
    """Tell a result again and again."""
    line = said.split(b"\n")[0] + b"\n"
    return line * (ANSWER_BYTES // len(line)) if said.startswith(b'{"id": "batch-') else said


def _no_json(said: bytes) -> bytes:
    """Tell results that begin and end as they should."""
    return said.replace(b'"body": {', b'"body": {]') if said.startswith(b'{"id"') else said


def _nan(said: bytes) -> bytes:
    return said.replace(b'"body": {', b'"body": {"a": NaN, ') if said.startswith(b'{"id"') else said


def _of_no_line(said: bytes) -> bytes:
    return said.replace(b'-1", "custom', b'-0", "custom') if said.startswith(b'{"id"') else said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda said: b"" if said.startswith(b'{"id"') else _endless(said), "no result for"),
        (_again, "more results than"),
        (_no_json, "is not a result"),
        (_nan, "is not a result"),
        (_of_no_line, "is not a result"),
        (lambda said: b"9" * 100_000 if said[:3].isdigit() else said, "cannot be written"),
    ],
)
def test_what_a_head_may_say_that_no_job_does(
    stage: Stage, spoil: Callable[[bytes], bytes], said: str
) -> None:
    outcome = attempt_offline(stage, Head(spoil).open)
    assert outcome.code == 1
    assert said in outcome.err
    assert len(outcome.err) < 5000
