"""What the job makes of a pipeline that repeats, loses or ends early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycluster.serve.asking.result import AskedLine, Fingerprint, Result
from raycluster.serve.asking.retrying_client import Tries
from raycluster.serve.offline.job import PASSES, ask_all
from raycluster.serve.offline.order import (
    AWAY,
    INPUT_FILE,
    RESULTS_FILE,
    STATE_FILE,
    JobState,
    Order,
    decode_job,
    encode_job,
)
from raycluster.serve.offline.stage import addresses, rows

STAMP = Fingerprint("0" * 12, "1" * 8)
ORDER = Order(STAMP, Tries(), "127.0.0.1", 1, 8, last=40)
Block = dict[str, list[Any]]


def result(line: int) -> bytes:
    body = b'{"said": "batch-0-0-7\\", "}'
    return Result(line, f'"{line}', 200, body=body).encode(STAMP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs = (AskedLine(n, f"c{n}", "/v1/completions", b"{}") for n in (3, 5, 8, 40))
    (tmp_path / INPUT_FILE).write_bytes(b"".join(map(encode_job, jobs)))
    return tmp_path


def asked(source: Path) -> list[int]:
    return [decode_job(line).line for line in source.read_bytes().splitlines()]


def written(folder: Path) -> list[bytes]:
    return (folder / RESULTS_FILE).read_bytes().splitlines(keepends=True)


def test_a_line_that_comes_twice_is_written_once(folder: Path) -> None:
    def ask(source: Path) -> Iterator[Block]:
        first, second, *rest = map(result, asked(source))
        yield rows([first, second], counts=(3, {"http_503": 1}))
        yield rows([second, first, *rest], counts=(2, {}))

    state = ask_all(folder, ORDER, ask)
    assert written(folder) == [result(n) for n in (3, 5, 8, 40)]
    assert state == JobState(5, {"http_503": 1}, over=True)
    assert JobState.decode((folder / STATE_FILE).read_bytes()) == state


def test_what_is_missing_is_asked_for_again(folder: Path) -> None:
    passes: list[list[int]] = []

    def ask(source: Path) -> Iterator[Block]:
        passes.append(asked(source))
        yield rows([result(passes[-1][0])])

    state = ask_all(folder, ORDER, ask)
    assert passes == [[3, 5, 8, 40], [5, 8, 40], [8, 40]] and len(passes) == PASSES
    assert written(folder) == [result(n) for n in (3, 5, 8)]
    assert state.over


def test_an_error_ends_the_job_and_keeps_what_was_there(folder: Path) -> None:
    def ask(source: Path) -> Iterator[Block]:
        yield rows([result(8)], counts=(1, {}))
        yield rows(error=(AWAY, "nothing was answered"))
        pytest.fail("asked for more")

    state = ask_all(folder, ORDER, ask)
    assert (state.kind, state.error, state.sent) == (AWAY, "nothing was answered", 1)
    assert written(folder) == [result(8)]


def test_a_node_without_a_way_in_of_its_own_asks_the_head() -> None:
    order = Order(STAMP, Tries(), "192.0.2.7", 9, 8, last=1)
    assert addresses(order) == ["http://192.0.2.7:9", "http://127.0.0.1:9"]
